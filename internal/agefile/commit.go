// SPDX-License-Identifier: Apache-2.0

package agefile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"livedump.io/internal/kdump"
)

// Summary is what a finished file is.
type Summary struct {
	Bytes  int64             // from the first byte of the target on
	SHA256 [sha256.Size]byte // of these bytes, as read back from the target
}

// Commit ends the file, size being that of the plain one: it encrypts what is left, reads everything
// back and authenticates it, and only then writes the header that makes it an age file.
//
// Errors: a part that was never written, kdump.ErrReadBack, what the Output returns, the cause of ctx.
// After any error there is no file on the target.
func (f *File) Commit(ctx context.Context, size int64) (s Summary, err error) {
	f.using.RLock()
	defer f.using.RUnlock()
	if f.closed {
		return s, ErrClosed
	}
	if size <= 0 || size > f.Size() {
		return s, fmt.Errorf("an encrypted file of %d bytes", size)
	}
	if err := f.sealHeld(size); err != nil {
		return s, err
	}
	last := (size - 1) / CellSize
	s.Bytes = f.place(last) + size - last*CellSize + tagSize
	header, err := f.secret.header(Owner{Session: f.session, Size: s.Bytes}, f.stanzas, f.base)
	if err != nil {
		return s, err
	}
	room, free, err := kdump.NewBuffer(len(header))
	if err != nil {
		return s, err
	}
	defer free()
	copy(room, header)
	if f.base > blockBytes {
		if err := f.write(room[blockBytes:f.base], blockBytes); err != nil {
			return s, err
		}
	}
	if err := f.out.Sync(); err != nil {
		return s, fmt.Errorf("syncing the target: %w", err)
	}
	c := check{f: f, header: header, size: size, end: s.Bytes}
	if s.SHA256, err = c.run(ctx); err != nil {
		return s, err
	}
	if err := f.write(room[:blockBytes], 0); err != nil {
		return s, err
	}
	if err := f.out.Sync(); err != nil {
		return s, fmt.Errorf("syncing block 0: %w", err)
	}
	clear(room)
	if n, err := f.out.ReadAt(room[:f.base], 0); int64(n) < f.base {
		return s, fmt.Errorf("reading back the header: %w", err)
	}
	if !bytes.Equal(room[:f.base], header) {
		return s, fmt.Errorf("%w: the header", kdump.ErrReadBack)
	}
	return s, nil
}

func (f *File) write(b []byte, off int64) error {
	n, err := f.out.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// sealHeld encrypts the cells that were kept. The last one is marked as such.
func (f *File) sealHeld(size int64) error {
	last := (size - 1) / CellSize
	f.mu.Lock()
	held := f.held
	highest := f.highest
	f.held = map[int64]*cell{}
	f.mu.Unlock()
	defer func() {
		for _, c := range held {
			c.mem.free()
		}
	}()
	if highest != last {
		return fmt.Errorf("an encrypted file of %d bytes was written up to %d", size, (highest+1)*CellSize)
	}
	for i := range last + 1 {
		c := held[i]
		if c == nil {
			if !f.isDone(i) {
				return fmt.Errorf("the 64 KiB at %d of an encrypted file were never written", i*CellSize)
			}
			continue
		}
		n, flag := int64(CellSize), byte(0)
		if i == last {
			n, flag = size-last*CellSize, 1
		}
		if want := uint16(1)<<((n+blockBytes-1)/blockBytes) - 1; c.written&want != want {
			return fmt.Errorf("of the %d bytes at %d of an encrypted file some were never written", n, i*CellSize)
		}
		f.setDone(i)
		if err := f.seal(run{first: i, cells: [][]byte{c.mem.b[:n]}}, flag); err != nil {
			return err
		}
	}
	if len(f.edges) > 0 {
		return errors.New("blocks of the encrypted file are not complete") // cannot be: all cells are there
	}
	return nil
}

// check reads the file back. It is read in pieces of whole cells, and hashed in order, while others authenticate.
type check struct {
	f      *File
	header []byte
	size   int64 // of the plain file
	end    int64 // of the encrypted one
}

type piece struct {
	mem   *buffer
	first int64 // cell
	b     []byte
	err   error
	done  chan struct{}
}

func (c *check) run(ctx context.Context) (sum [sha256.Size]byte, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	workers := max(1, runtime.GOMAXPROCS(0))
	work := make(chan *piece)
	inOrder := make(chan *piece, workers)
	var running sync.WaitGroup
	defer func() {
		cancel(nil)
		running.Wait()
	}()
	cells := (c.size + CellSize - 1) / CellSize
	running.Go(func() {
		defer close(work)
		defer close(inOrder)
		for i := int64(0); i < cells; i += runCells {
			p := &piece{first: i, done: make(chan struct{})}
			for _, ch := range []chan *piece{inOrder, work} {
				select {
				case ch <- p:
				case <-ctx.Done():
					return
				}
			}
		}
	})
	for range workers {
		running.Go(func() {
			for p := range work {
				p.err = c.piece(p)
				close(p.done)
			}
		})
	}
	h := sha256.New()
	h.Write(c.header)
	for p := range inOrder {
		select {
		case <-p.done:
		case <-ctx.Done():
			return sum, context.Cause(ctx)
		}
		if p.err != nil {
			return sum, p.err
		}
		h.Write(p.b)
		c.f.mu.Lock()
		c.f.buffers = append(c.f.buffers, p.mem)
		c.f.mu.Unlock()
	}
	if ctx.Err() != nil {
		return sum, context.Cause(ctx)
	}
	h.Sum(sum[:0])
	return sum, nil
}

// piece reads some cells and authenticates them.
func (c *check) piece(p *piece) (err error) {
	f := c.f
	start := f.place(p.first)
	end := min(f.place(p.first+runCells), c.end)
	from, to := start&^(blockBytes-1), (end+blockBytes-1)&^(blockBytes-1)
	f.mu.Lock()
	p.mem, err = f.buffer(runCells*sealed + 2*blockBytes)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	b := p.mem.b[:to-from]
	if n, err := f.out.ReadAt(b, from); n < len(b) {
		return fmt.Errorf("reading back the encrypted file at %d: %w", from, err)
	}
	p.b = b[start-from : end-from]
	last := (c.size - 1) / CellSize
	plain := make([]byte, 0, CellSize)
	for i, rest := p.first, p.b; len(rest) > 0; i++ {
		n, flag := min(len(rest), sealed), byte(0)
		if i == last {
			flag = 1
		}
		if _, err := f.secret.aead.Open(plain, f.secret.cellNonce(i, flag), rest[:n], nil); err != nil {
			return fmt.Errorf("%w: the 64 KiB at %d of the encrypted file", kdump.ErrReadBack, i*CellSize)
		}
		rest = rest[n:]
	}
	return nil
}
