// SPDX-License-Identifier: Apache-2.0

package target

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"sync"
)

// Pipe is a Stream to a file descriptor whose other end this program knows nothing of: standard output. That
// the dump is whole is said by the end of the flattened stream, without which no reader takes it for one; and by the exit
// status of this program.
type Pipe struct {
	w    io.WriteCloser
	name string
	sum  hash.Hash

	mu    sync.Mutex
	bytes int64
	ended bool
	shut  bool
}

// NewPipe makes a Stream of w, which it closes in the end.
func NewPipe(w io.WriteCloser, name string) *Pipe {
	return &Pipe{w: w, name: name, sum: sha256.New()}
}

// Describe implements Target.
func (p *Pipe) Describe() string { return p.name }

// Abilities implements Target.
func (p *Pipe) Abilities() Abilities { return Abilities{} }

// Write implements Stream.
func (p *Pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	if ended {
		return 0, fmt.Errorf("%s: %w", p.name, ErrEnded)
	}
	n, err := p.w.Write(b)
	p.sum.Write(b[:n])
	p.mu.Lock()
	p.bytes += int64(n)
	p.mu.Unlock()
	if err != nil {
		return n, fmt.Errorf("writing to %s: %w", p.name, err)
	}
	return n, nil
}

// Commit implements Target.
func (p *Pipe) Commit(ctx context.Context, size int64) (Receipt, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return Receipt{}, fmt.Errorf("%s: %w", p.name, ErrEnded)
	}
	p.ended = true
	if err := context.Cause(ctx); err != nil {
		return Receipt{}, fmt.Errorf("%s: %w", p.name, err)
	}
	if size != p.bytes {
		return Receipt{}, fmt.Errorf("%s: %d bytes were written, the dump has %d", p.name, p.bytes, size)
	}
	p.shut = true
	if err := p.w.Close(); err != nil {
		return Receipt{}, fmt.Errorf("closing %s: %w", p.name, err)
	}
	r := Receipt{Bytes: size}
	p.sum.Sum(r.SHA256[:0])
	return r, nil
}

// Abort implements Target. What was written cannot be taken back; it has no end.
func (p *Pipe) Abort(error) error {
	p.mu.Lock()
	shut := p.shut
	p.ended, p.shut = true, true
	p.mu.Unlock()
	if shut {
		return nil
	}
	// A Write that waits for the other end returns.
	if err := p.w.Close(); err != nil {
		return fmt.Errorf("closing %s: %w", p.name, err)
	}
	return nil
}

// Close implements Target.
func (p *Pipe) Close() error { return p.Abort(ErrAborted) }
