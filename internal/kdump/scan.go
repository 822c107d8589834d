// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// chunkScan reads a dump from end to end, compares every chunk with its checksum, and computes the
// checksum of the whole. Chunks are read and compared by several goroutines; the checksum of the whole
// takes them in order.
type chunkScan struct {
	r         io.ReaderAt
	block0    []byte // taken as it is instead of being read
	rec       *Record
	sums      []chunkSum
	workers   int
	bytesRead *atomic.Int64
	// bad is called for each chunk that differs, in order. An error of it ends the scan.
	bad func(badChunk) error
}

type badChunk struct {
	offset int64
	n      int
	err    error // of reading it, or nil
}

type scanSlot struct {
	buf    *aligned
	offset int64
	n      int
	index  int // of the checksum, or the number of checksums for the table of them
	same   bool
	err    error
	done   chan struct{}
}

func (c *chunkScan) run(ctx context.Context) (sum [sha256.Size]byte, err error) {
	slots := 2 * c.workers
	free := make(chan *aligned, slots)
	for range slots {
		b, err := newAligned(int(c.rec.ChunkBytes))
		if err != nil {
			return sum, err
		}
		defer b.free()
		free <- b
	}

	ctx, cancel := context.WithCancelCause(ctx)
	work := make(chan *scanSlot, slots)
	inOrder := make(chan *scanSlot, slots)
	var running sync.WaitGroup
	defer func() { // before the buffers are freed
		cancel(nil)
		running.Wait()
	}()
	running.Go(func() {
		defer close(work)
		defer close(inOrder)
		c.plan(func(s *scanSlot) bool {
			select {
			case s.buf = <-free:
			case <-ctx.Done():
				return false
			}
			s.done = make(chan struct{})
			inOrder <- s // both have room for every buffer
			work <- s
			return true
		})
	})
	for range c.workers {
		running.Go(func() {
			for s := range work {
				c.check(s)
				close(s.done)
			}
		})
	}

	whole := sha256.New()
	whole.Write(c.block0)
	for s := range inOrder {
		<-s.done
		if s.err != nil || !s.same {
			if err := c.bad(badChunk{offset: s.offset, n: s.n, err: s.err}); err != nil {
				return sum, err
			}
		}
		whole.Write(s.buf.b[:s.n])
		c.bytesRead.Add(int64(s.n))
		free <- s.buf
	}
	if ctx.Err() != nil {
		return sum, context.Cause(ctx)
	}
	whole.Sum(sum[:0])
	return sum, nil
}

// plan calls f for each piece of the file after block 0, in order, until f returns false.
func (c *chunkScan) plan(f func(*scanSlot) bool) {
	chunk, sums, size := int64(c.rec.ChunkBytes), int64(c.rec.SumsOffset), int64(c.rec.Size)
	for off := int64(PageSize); off < sums; {
		i := off / chunk
		end := min((i+1)*chunk, sums)
		if !f(&scanSlot{offset: off, n: int(end - off), index: int(i)}) {
			return
		}
		off = end
	}
	for off := sums; off < size; off += chunk {
		if !f(&scanSlot{offset: off, n: int(min(chunk, size-off)), index: len(c.sums)}) {
			return
		}
	}
}

func (c *chunkScan) check(s *scanSlot) {
	b := s.buf.b[:s.n]
	if n, err := c.r.ReadAt(b, s.offset); n < s.n {
		clear(b[n:])
		s.err = fmt.Errorf("reading %d bytes at %d: %w", s.n, s.offset, unexpectedEOF(err))
		return
	}
	if s.index < len(c.sums) {
		s.same = sumChunk(b) == c.sums[s.index]
		return
	}
	s.same = c.checkTable(b, s.offset)
}

// checkTable compares a piece of the table of checksums with the checksums themselves.
func (c *chunkScan) checkTable(b []byte, offset int64) bool {
	at := int((offset - int64(c.rec.SumsOffset)) / chunkSumBytes)
	for i := 0; i < len(b); i += chunkSumBytes {
		var want chunkSum
		if k := at + i/chunkSumBytes; k < len(c.sums) {
			want = c.sums[k]
		}
		if readChunkSum(b[i:]) != want {
			return false
		}
	}
	return true
}
