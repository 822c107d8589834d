// SPDX-License-Identifier: Apache-2.0

package target

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"livedump.io/internal/kdump"
)

// appendBytes is how much an appender writes at once.
const appendBytes = 1 << 20

// NewAppender makes a Stream of a Random: bytes are gathered and written in whole blocks from its first byte on. Commit
// reads everything back. What comes after the last byte in its block is zeros, unless the target can be cut.
func NewAppender(r Random) (Stream, error) {
	mem, err := unix.Mmap(-1, 0, appendBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("a buffer of %d bytes: %w", appendBytes, err)
	}
	return &appender{r: r, mem: mem, sum: sha256.New()}, nil
}

type appender struct {
	r   Random
	sum hash.Hash

	mu      sync.Mutex
	mem     []byte
	filled  int
	written int64 // before what is in mem
	err     error
	ended   bool
}

func (a *appender) Describe() string { return a.r.Describe() }

func (a *appender) Abilities() Abilities { return Abilities{} }

func (a *appender) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	done := 0
	for a.err == nil && done < len(b) {
		if a.ended {
			a.err = fmt.Errorf("%s: %w", a.Describe(), ErrEnded)
			break
		}
		n := copy(a.mem[a.filled:], b[done:])
		a.filled, done = a.filled+n, done+n
		if a.filled == len(a.mem) {
			a.flush(len(a.mem))
		}
	}
	if a.err != nil {
		return 0, a.err
	}
	a.sum.Write(b)
	return done, nil
}

// flush writes the first n bytes of the buffer.
func (a *appender) flush(n int) {
	if need := a.written + int64(n); need > a.r.Size() {
		a.err = &kdump.TargetTooSmallError{Needed: need, Available: a.r.Size()}
		return
	}
	k, err := a.r.WriteAt(a.mem[:n], a.written)
	if err == nil && k < n {
		err = io.ErrShortWrite
	}
	if err != nil {
		a.err = fmt.Errorf("writing %d bytes at %d to %s: %w", n, a.written, a.Describe(), err)
		return
	}
	a.written += int64(n)
	a.filled = 0
}

func (a *appender) Commit(ctx context.Context, size int64) (Receipt, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := Receipt{Bytes: size}
	err := a.finish(ctx, size, &r)
	if err != nil {
		return Receipt{}, errors.Join(err, a.end(err))
	}
	a.ended = true
	a.free()
	r.ReadBack = true
	_, err = a.r.Commit(ctx, size)
	return r, err
}

func (a *appender) finish(ctx context.Context, size int64, r *Receipt) error {
	switch have := a.written + int64(a.filled); {
	case a.ended:
		return fmt.Errorf("%s: %w", a.Describe(), ErrEnded)
	case a.err != nil:
		return a.err
	case have != size:
		return fmt.Errorf("%s: %d bytes were written, the dump has %d", a.Describe(), have, size)
	}
	if n := (a.filled + kdump.PageSize - 1) &^ (kdump.PageSize - 1); n > 0 {
		clear(a.mem[a.filled:n])
		if a.flush(n); a.err != nil {
			return a.err
		}
	}
	if err := a.r.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", a.Describe(), err)
	}
	a.sum.Sum(r.SHA256[:0])
	back := sha256.New()
	for off := int64(0); off < size; off += appendBytes {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n := min(appendBytes, a.written-off)
		if k, err := a.r.ReadAt(a.mem[:n], off); int64(k) < n {
			return fmt.Errorf("reading back %d bytes at %d: %w", n, off, errors.Join(io.ErrUnexpectedEOF, err))
		}
		back.Write(a.mem[:min(n, size-off)])
	}
	if [sha256.Size]byte(back.Sum(nil)) != r.SHA256 {
		return fmt.Errorf("%w: %s", kdump.ErrReadBack, a.Describe())
	}
	return nil
}

func (a *appender) Abort(reason error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.end(reason)
}

func (a *appender) end(reason error) error {
	a.ended = true
	a.free()
	return a.r.Abort(reason)
}

func (a *appender) free() {
	if a.mem != nil {
		_ = unix.Munmap(a.mem) // cannot fail for a mapping of our own
		a.mem = nil
	}
}

func (a *appender) Close() error { return errors.Join(a.Abort(ErrAborted), a.r.Close()) }
