// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// disk writes chunks to the Output from a pool of goroutines and keeps the checksum of each. Chunk i
// covers the bytes [i*chunkBytes, (i+1)*chunkBytes) of the file, chunk 0 without block 0.
//
// The number of buffers bounds memory: who needs one while all are being written waits.
type disk struct {
	out        Output
	chunkBytes int64

	free    chan *aligned
	buffers []*aligned
	writes  chan chunkWrite
	writers sync.WaitGroup

	failure *failure
	pace    *pace // nil: as fast as it goes

	mu       sync.Mutex
	sums     []chunkSum
	underWay map[int64]bool // offsets of submitted writes that are not done
	pending  sync.WaitGroup
	onWrite  func() // a write is done

	bytesWritten *atomic.Int64
}

type chunkWrite struct {
	buf    *aligned
	offset int64
	n      int
}

// failure is the first error, which ends everything.
type failure struct {
	once sync.Once
	err  error
	done chan struct{}
}

func newFailure() *failure { return &failure{done: make(chan struct{})} }

func (f *failure) set(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.done)
	})
}

func (f *failure) get() error {
	select {
	case <-f.done:
		return f.err
	default:
		return nil
	}
}

func newDisk(out Output, chunkBytes int64, writers int, f *failure, written *atomic.Int64) (*disk, error) {
	buffers := writers + 2 // one being filled for data, one for metadata
	d := &disk{
		out: out, chunkBytes: chunkBytes, failure: f, bytesWritten: written,
		underWay: map[int64]bool{}, onWrite: func() {},
		free:   make(chan *aligned, buffers),
		writes: make(chan chunkWrite, buffers),
	}
	for range buffers {
		b, err := newAligned(int(chunkBytes))
		if err != nil {
			d.release()
			return nil, err
		}
		d.buffers = append(d.buffers, b)
		d.free <- b
	}
	for range writers {
		d.writers.Go(d.writeLoop)
	}
	return d, nil
}

func (d *disk) writeLoop() {
	for w := range d.writes {
		d.write(w)
		d.free <- w.buf
		d.pending.Done()
	}
}

func (d *disk) write(w chunkWrite) {
	if d.failure.get() != nil {
		return
	}
	d.setSum(w.offset/d.chunkBytes, sumChunk(w.buf.b[:w.n]))
	if d.pace != nil && !d.pace.wait(w.n, d.failure.done) {
		return
	}
	if err := writeAt(d.out, w.buf.b[:w.n], w.offset); err != nil {
		d.failure.set(err)
		return
	}
	d.bytesWritten.Add(int64(w.n))
	d.mu.Lock()
	delete(d.underWay, w.offset)
	d.mu.Unlock()
	d.onWrite()
}

func (d *disk) setSum(chunk int64, sum chunkSum) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for int64(len(d.sums)) <= chunk {
		d.sums = append(d.sums, 0)
	}
	d.sums[chunk] = sum
}

// writtenTo is up to where everything has been written that was to be, of what ends at end.
func (d *disk) writtenTo(end int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for offset := range d.underWay {
		end = min(end, offset)
	}
	return end
}

// writeAt is out.WriteAt with errors that say where. A target that has no room after all (a thin
// volume, a file system) is too small as well.
func writeAt(out Output, b []byte, offset int64) error {
	n, err := out.WriteAt(b, offset)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err == nil {
		return nil
	}
	werr := &WriteError{Offset: offset, Length: len(b), Err: err}
	if errors.Is(err, unix.ENOSPC) {
		return errors.Join(&TargetTooSmallError{Needed: offset + int64(len(b)), Available: offset}, werr)
	}
	return werr
}

// buffer waits for a free one.
func (d *disk) buffer() (*aligned, error) {
	select {
	case b := <-d.free:
		return b, nil
	case <-d.failure.done:
		return nil, d.failure.err
	}
}

func (d *disk) submit(w chunkWrite) {
	d.pending.Add(1)
	d.mu.Lock()
	d.underWay[w.offset] = true
	d.mu.Unlock()
	d.writes <- w // has room for every buffer
}

// wait returns when all submitted writes are done.
func (d *disk) wait() error {
	d.pending.Wait()
	return d.failure.get()
}

// stop ends the writers after what was submitted; no submit may follow.
func (d *disk) stop() {
	close(d.writes)
	d.writers.Wait()
	d.release()
}

func (d *disk) release() {
	for _, b := range d.buffers {
		b.free()
	}
	d.buffers = nil
}

// stream puts bytes one after the other into chunks. One goroutine at a time.
type stream struct {
	d      *disk
	offset int64 // in the file, of the next byte
	cur    *aligned
	start  int64 // offset of cur's first byte
}

func newStream(d *disk, offset int64) *stream { return &stream{d: d, offset: offset} }

func (s *stream) append(p []byte) error {
	for len(p) > 0 {
		room, err := s.room()
		if err != nil {
			return err
		}
		n := copy(room, p)
		p = p[n:]
		s.advance(n)
	}
	return nil
}

// appendPieces appends n bytes of pieces and returns what is left of them; it may change the first of these.
func (s *stream) appendPieces(pieces [][]byte, n int) ([][]byte, error) {
	for n > 0 {
		p := pieces[0]
		p = p[:min(n, len(p))]
		if err := s.append(p); err != nil {
			return pieces, err
		}
		n -= len(p)
		if pieces[0] = pieces[0][len(p):]; len(pieces[0]) == 0 {
			pieces = pieces[1:]
		}
	}
	return pieces, nil
}

// appendZeros appends n zero bytes.
func (s *stream) appendZeros(n int64) error {
	for n > 0 {
		room, err := s.room()
		if err != nil {
			return err
		}
		k := min(n, int64(len(room)))
		clear(room[:k])
		n -= k
		s.advance(int(k))
	}
	return nil
}

// room is what is left of the current chunk, never nothing.
func (s *stream) room() ([]byte, error) {
	if s.cur == nil {
		b, err := s.d.buffer()
		if err != nil {
			return nil, err
		}
		s.cur, s.start = b, s.offset
	}
	end := (s.start/s.d.chunkBytes + 1) * s.d.chunkBytes
	return s.cur.b[s.offset-s.start : end-s.start], nil
}

// left is how many bytes the current chunk still takes, never none.
func (s *stream) left() int {
	return int(s.d.chunkBytes - s.offset%s.d.chunkBytes)
}

func (s *stream) advance(n int) {
	s.offset += int64(n)
	if s.offset%s.d.chunkBytes == 0 {
		s.submit()
	}
}

func (s *stream) submit() {
	s.d.submit(chunkWrite{buf: s.cur, offset: s.start, n: int(s.offset - s.start)})
	s.cur = nil
}

// finish pads to a whole block and submits the last chunk. It returns the end.
func (s *stream) finish() (int64, error) {
	if err := s.appendZeros(roundUp(s.offset, PageSize) - s.offset); err != nil {
		return 0, err
	}
	if s.cur != nil {
		s.submit()
	}
	return s.offset, nil
}
