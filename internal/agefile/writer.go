// SPDX-License-Identifier: Apache-2.0

package agefile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"

	"livedump.io/internal/kdump"
)

const (
	blockBytes = kdump.PageSize
	cellBlocks = CellSize / blockBytes

	// runCells are encrypted and written together: about 1 MiB.
	runCells = 16

	// maxHeld bounds the memory for cells that are not complete.
	maxHeld = 32 << 20
)

var (
	// ErrRewritten: a part of the file was written that is encrypted already.
	ErrRewritten = errors.New("written twice to an encrypted file")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the encrypted file is closed")
	// ErrScattered: too many cells are begun and not complete.
	ErrScattered = errors.New("an encrypted file is written in too many places at once")
)

// File is an age file that is being written to an Output. It is a kdump.Output itself: what is
// written to it is the plain file, in any order, each block once, but for those of the first and the
// last cell. livedump's mark for block 0 of a target that is not a dump goes through as it is. Offsets and lengths are multiples of 4096.
//
// Its methods but Commit may be called from several goroutines.
type File struct {
	out     kdump.Output
	secret  *secret
	stanzas []*age.Stanza
	session kdump.Session
	base    int64 // where the first cell begins in out

	using  sync.RWMutex // held shared while memory is used, alone by Close
	closed bool

	mu      sync.Mutex
	held    map[int64]*cell // begun, and complete ones whose time has not come
	done    []uint64        // bitmap of the cells that are encrypted
	highest int64           // cell written to; it may be the last one, so it is held
	edges   map[int64]*edge // blocks of out that two cells share, of which one is there
	buffers []*buffer       // idle ones

	spill spill
}

// cell is a part of the plain file that is kept in memory.
type cell struct {
	mem     *buffer
	written uint16 // bitmap of blocks
}

const wholeCell = 1<<cellBlocks - 1

// edge is a block of out with the end of one cell and the beginning of the next.
type edge struct {
	b           [blockBytes]byte
	left, right bool
}

type buffer struct {
	b    []byte
	free func()
}

// New begins an age file in out, for recipients. It writes nothing.
func New(out kdump.Output, recipients []age.Recipient, session kdump.Session) (*File, error) {
	if len(recipients) == 0 {
		return nil, errors.New("no recipients")
	}
	s, err := newSecret()
	if err != nil {
		return nil, err
	}
	f := &File{out: out, secret: s, session: session, held: map[int64]*cell{}, edges: map[int64]*edge{}, highest: -1}
	if f.stanzas, err = s.wrapped(recipients); err != nil {
		return nil, err
	}
	header, err := s.header(Owner{Session: session}, f.stanzas, 0)
	if err != nil {
		return nil, err
	}
	f.base = int64(len(header))
	f.spill = spill{out: out, shift: out.Size()&^(blockBytes-1) - f.Size()}
	return f, nil
}

// Size is the room for the plain file.
func (f *File) Size() int64 {
	room := f.out.Size()&^(blockBytes-1) - f.base
	if room < 0 {
		return 0
	}
	cells := room / sealed
	rest := max(0, room-cells*sealed-tagSize)
	return cells*CellSize + rest&^(blockBytes-1)
}

// Spill is the room at the end of the target, for what does not stay. Nothing is encrypted there: whoever
// writes to it must do that.
func (f *File) Spill() kdump.Output { return &f.spill }

// spill keeps the distance from the end: what ends before it in the plain file does so on the target.
type spill struct {
	out   kdump.Output
	shift int64
}

func (s *spill) WriteAt(b []byte, off int64) (int, error) { return s.out.WriteAt(b, off+s.shift) }
func (s *spill) ReadAt(b []byte, off int64) (int, error)  { return s.out.ReadAt(b, off+s.shift) }
func (s *spill) Sync() error                              { return s.out.Sync() }
func (s *spill) Size() int64                              { return s.out.Size() - s.shift }

// Sync makes the cells that are encrypted durable. Those that are held are not: nothing counts before Commit.
func (f *File) Sync() error { return f.out.Sync() }

// run is a row of cells to encrypt: their plain content, one after the other.
type run struct {
	first int64
	cells [][]byte
	held  []*cell // to be released
}

// WriteAt takes a part of the plain file.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if off%blockBytes != 0 || len(p)%blockBytes != 0 || off < 0 {
		return 0, fmt.Errorf("writing %d bytes at %d to an encrypted file: not whole blocks", len(p), off)
	}
	if off == 0 && len(p) == blockBytes && kdump.IsMark(p) {
		// It says that there is no dump yet, or why there is none, so it is for everybody.
		return f.out.WriteAt(p, 0)
	}
	if int64(len(p)) > f.Size()-off {
		return 0, &kdump.TargetTooSmallError{Needed: off + int64(len(p)), Available: f.Size()}
	}
	f.using.RLock()
	defer f.using.RUnlock()
	if f.closed {
		return 0, ErrClosed
	}
	runs, err := f.take(p, off)
	if err != nil {
		return 0, err
	}
	for i, r := range runs {
		err := f.seal(r, 0)
		f.release(r.held)
		if err != nil {
			for _, r := range runs[i+1:] {
				f.release(r.held)
			}
			return 0, err
		}
	}
	return len(p), nil
}

// take sorts out which cells are complete with these bytes. The others are kept.
func (f *File) take(p []byte, off int64) ([]run, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var runs []run
	ready := func(i int64, content []byte, c *cell) {
		f.setDone(i)
		if n := len(runs); n > 0 && runs[n-1].first+int64(len(runs[n-1].cells)) == i && len(runs[n-1].cells) < runCells {
			runs[n-1].cells = append(runs[n-1].cells, content)
		} else {
			runs = append(runs, run{first: i, cells: [][]byte{content}})
		}
		if c != nil {
			r := &runs[len(runs)-1]
			r.held = append(r.held, c)
		}
	}
	last := (off + int64(len(p)) - 1) / CellSize
	if last > f.highest {
		// What was the highest may be encrypted now.
		if c := f.held[f.highest]; c != nil && c.written == wholeCell && f.highest != 0 && off/CellSize > f.highest {
			delete(f.held, f.highest)
			ready(f.highest, c.mem.b[:CellSize], c)
		}
		f.highest = last
	}
	for len(p) > 0 {
		i, at := off/CellSize, off%CellSize
		n := min(int64(len(p)), CellSize-at)
		part := p[:n]
		p, off = p[n:], off+n
		if f.isDone(i) {
			return nil, fmt.Errorf("%w: %d bytes at %d", ErrRewritten, n, i*CellSize+at)
		}
		c := f.held[i]
		stays := i == 0 || i == f.highest
		if n == CellSize && c == nil && !stays {
			ready(i, part, nil)
			continue
		}
		if c == nil {
			if int64(len(f.held)+1)*CellSize > maxHeld {
				return nil, fmt.Errorf("%w: %d parts of 64 KiB have been begun and are not complete", ErrScattered, len(f.held))
			}
			mem, err := f.buffer(CellSize)
			if err != nil {
				return nil, err
			}
			c = &cell{mem: mem}
			f.held[i] = c
		}
		copy(c.mem.b[at:], part)
		c.written |= (1<<(n/blockBytes) - 1) << (at / blockBytes)
		if c.written == wholeCell && !stays {
			delete(f.held, i)
			ready(i, c.mem.b[:CellSize], c)
		}
	}
	return runs, nil
}

func (f *File) isDone(i int64) bool {
	return i/64 < int64(len(f.done)) && f.done[i/64]&(1<<(i%64)) != 0
}

func (f *File) setDone(i int64) {
	for i/64 >= int64(len(f.done)) {
		f.done = append(f.done, 0)
	}
	f.done[i/64] |= 1 << (i % 64)
}

// buffer gives an idle one; the lock is held.
func (f *File) buffer(size int) (*buffer, error) {
	for i, b := range f.buffers {
		if len(b.b) >= size && len(b.b) < 2*size {
			f.buffers = append(f.buffers[:i], f.buffers[i+1:]...)
			return b, nil
		}
	}
	b, free, err := kdump.NewBuffer(size)
	if err != nil {
		return nil, err
	}
	return &buffer{b, free}, nil
}

func (f *File) release(cells []*cell) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range cells {
		f.buffers = append(f.buffers, c.mem)
	}
}

// Close releases memory, when nobody uses it any more. It does not close the Output.
func (f *File) Close() {
	f.using.Lock()
	defer f.using.Unlock()
	f.closed = true
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.held {
		c.mem.free()
	}
	for _, b := range f.buffers {
		b.free()
	}
	clear(f.held)
	f.buffers = nil
}

func (s *secret) cellNonce(i int64, last byte) []byte {
	var n [chacha20poly1305.NonceSize]byte
	binary.BigEndian.PutUint64(n[3:], uint64(i)) // 11 bytes of counter
	n[11] = last
	return n[:]
}

// place of a cell in out.
func (f *File) place(i int64) int64 { return f.base + i*sealed }

// seal encrypts a row of cells and writes them. Blocks that they share with a neighbour that is not
// there yet are left to it. last is 1 for the last cell of the file.
func (f *File) seal(r run, last byte) error {
	start := f.place(r.first)
	from := start &^ (blockBytes - 1)
	end := start
	for _, c := range r.cells {
		end += int64(len(c)) + tagSize
	}
	to := (end + blockBytes - 1) &^ (blockBytes - 1)

	f.mu.Lock()
	mem, err := f.buffer(runCells*sealed + 2*blockBytes)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	defer func() {
		f.mu.Lock()
		f.buffers = append(f.buffers, mem)
		f.mu.Unlock()
	}()
	b := mem.b[:to-from]
	at := start - from
	for k, c := range r.cells {
		f.secret.aead.Seal(b[at:at], f.secret.cellNonce(r.first+int64(k), last), c, nil)
		at += int64(len(c)) + tagSize
	}
	clear(b[end-from:]) // behind the file's end, if this is the last cell

	whole := b
	f.mu.Lock()
	if start%blockBytes != 0 && !f.join(from, b[:blockBytes], start-from, true) {
		whole, from = whole[blockBytes:], from+blockBytes
	}
	if end%blockBytes != 0 && last == 0 && !f.join(to-blockBytes, b[len(b)-blockBytes:], end-(to-blockBytes), false) {
		whole = whole[:len(whole)-blockBytes]
	}
	if int64(len(f.edges))*blockBytes > maxHeld {
		err = fmt.Errorf("%w: %d rows of 64 KiB lie apart", ErrScattered, len(f.edges))
	}
	f.mu.Unlock()
	if err != nil {
		return err
	}
	n, err := f.out.WriteAt(whole, from)
	if err == nil && n < len(whole) {
		err = io.ErrShortWrite
	}
	return err
}

// join puts a cell's part of a shared block together with the other's. at is where the one cell ends in
// the block and the next begins; right says that the block's end is ours. It returns true if the block is complete:
// then b is all of it. The lock is held.
func (f *File) join(offset int64, b []byte, at int64, right bool) bool {
	e := f.edges[offset]
	if e == nil {
		e = &edge{}
		f.edges[offset] = e
	}
	if right {
		copy(e.b[at:], b[at:])
		e.right = true
	} else {
		copy(e.b[:at], b[:at])
		e.left = true
	}
	if !e.left || !e.right {
		return false
	}
	copy(b, e.b[:])
	delete(f.edges, offset)
	return true
}

// ReadAt reads what has been written of the plain file.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	f.using.RLock()
	defer f.using.RUnlock()
	if f.closed {
		return 0, ErrClosed
	}
	n := 0
	for n < len(p) {
		i, at := off/CellSize, off%CellSize
		k := int(min(int64(len(p)-n), CellSize-at))
		if err := f.readCell(p[n:n+k], i, at); err != nil {
			return n, err
		}
		n, off = n+k, off+int64(k)
	}
	return n, nil
}

func (f *File) readCell(p []byte, i, at int64) error {
	f.mu.Lock()
	if c := f.held[i]; c != nil {
		copy(p, c.mem.b[at:])
		f.mu.Unlock()
		return nil
	}
	done := f.isDone(i)
	f.mu.Unlock()
	if !done {
		return fmt.Errorf("%d bytes at %d of an encrypted file have not been written", len(p), i*CellSize+at)
	}
	start := f.place(i)
	from, to := start&^(blockBytes-1), (start+sealed+blockBytes-1)&^(blockBytes-1)
	b, free, err := kdump.NewBuffer(int(to - from))
	if err != nil {
		return err
	}
	defer free()
	b = b[:to-from]
	if n, err := f.out.ReadAt(b, from); n < len(b) {
		return fmt.Errorf("reading back an encrypted cell: %w", err)
	}
	f.mu.Lock()
	if e := f.edges[from]; e != nil {
		copy(b, e.b[:])
	}
	if e := f.edges[to-blockBytes]; e != nil {
		copy(b[len(b)-blockBytes:], e.b[:])
	}
	f.mu.Unlock()
	b = b[start-from:][:sealed]
	plain, err := f.secret.aead.Open(b[:0], f.secret.cellNonce(i, 0), b, nil)
	if err != nil {
		return fmt.Errorf("%w: cell %d of the encrypted file", kdump.ErrReadBack, i)
	}
	copy(p, plain[at:])
	return nil
}
