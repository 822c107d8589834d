// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Flattened reads the plain dump that a flattened stream in a file holds. What no record has reads as zeros. It is an
// io.ReaderAt, and its methods may be called from several goroutines.
type Flattened struct {
	r     io.ReaderAt
	parts []flatPart // in order, without overlap
	size  int64
}

// flatPart is bytes of the plain dump and where they are in the stream.
type flatPart struct {
	start, end int64
	at         int64
}

// IsFlattened looks at the first bytes of a file.
func IsFlattened(r io.ReaderAt) bool {
	var b [len(flatSignature) + 1]byte
	n, _ := r.ReadAt(b[:], 0)
	return n == len(b) && bytes.Equal(b[:], []byte(flatSignature+"\x00"))
}

// maxPlain bounds the size of the plain dump that is believed.
const maxPlain = 1 << 56

// OpenFlattened reads where the records of a stream are. A stream without its end is ErrTruncated.
func OpenFlattened(r io.ReaderAt, size int64) (*Flattened, error) {
	var b [flatHeaderBytes]byte
	if n, err := r.ReadAt(b[:], 0); n < len(b) {
		return nil, fmt.Errorf("%w: the flattened stream ends in its header: %w", ErrTruncated, unexpectedEOF(err))
	}
	if !bytes.HasPrefix(b[:], []byte(flatSignature+"\x00")) {
		return nil, fmt.Errorf("%w: not a flattened stream", ErrNotDump)
	}
	if kind, version := binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:]); kind != flatType || version != flatVersion {
		return nil, fmt.Errorf("%w: a flattened stream of type %d, version %d", ErrVersion, kind, version)
	}
	var records []flatPart
	for at := int64(flatHeaderBytes); ; {
		if n, err := r.ReadAt(b[:flatRecordBytes], at); n < flatRecordBytes {
			if err == nil || errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("%w: the flattened stream has no end after %d bytes", ErrTruncated, at)
			}
			return nil, fmt.Errorf("reading the flattened stream at %d: %w", at, err)
		}
		off, n := int64(binary.BigEndian.Uint64(b[:])), int64(binary.BigEndian.Uint64(b[8:]))
		at += flatRecordBytes
		if off == flatEnd && n == flatEnd {
			if at < size {
				return nil, fmt.Errorf("%w: %d bytes follow the end of the flattened stream", ErrDamaged, size-at)
			}
			break
		}
		switch {
		case off < 0 || n < 0 || off > maxPlain || n > maxPlain:
			return nil, fmt.Errorf("%w: a record of %d bytes for %d in the flattened stream, at %d", ErrDamaged, n, off, at-flatRecordBytes)
		case n > size-at:
			return nil, fmt.Errorf("%w: the flattened stream ends in a record of %d bytes", ErrTruncated, n)
		case n > 0:
			records = append(records, flatPart{off, off + n, at})
		}
		at += n
	}
	f := &Flattened{r: r, parts: latest(records)}
	if n := len(f.parts); n > 0 {
		f.size = f.parts[n-1].end
	}
	return f, nil
}

// latest puts records in order. Of several for the same place the one that came last in the stream counts.
func latest(records []flatPart) []flatPart {
	slices.SortFunc(records, func(a, b flatPart) int {
		switch {
		case a.start != b.start:
			return compare(a.start, b.start)
		}
		return compare(a.at, b.at)
	})
	var parts []flatPart
	var open flatHeap // records that begin before pos, the latest first
	pos := int64(0)
	emit := func(to int64) {
		for pos < to && len(open) > 0 {
			top := open[0]
			if top.end <= pos {
				heap.Pop(&open)
				continue
			}
			end := min(to, top.end)
			p := flatPart{pos, end, top.at + pos - top.start}
			if n := len(parts); n > 0 && parts[n-1].end == pos && parts[n-1].at+pos-parts[n-1].start == p.at {
				parts[n-1].end = end
			} else {
				parts = append(parts, p)
			}
			pos = end
		}
		pos = max(pos, to)
	}
	for _, r := range records {
		emit(r.start)
		heap.Push(&open, r)
	}
	emit(maxPlain * 2)
	return parts
}

func compare(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

type flatHeap []flatPart

func (h flatHeap) Len() int           { return len(h) }
func (h flatHeap) Less(i, j int) bool { return h[i].at > h[j].at }
func (h flatHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *flatHeap) Push(v any)        { *h = append(*h, v.(flatPart)) }
func (h *flatHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// Size of the plain dump in bytes.
func (f *Flattened) Size() int64 { return f.size }

// ReadAt reads from the plain dump.
func (f *Flattened) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading at %d", off)
	}
	n := int64(len(b))
	n = max(0, min(n, f.size-off))
	i, _ := slices.BinarySearchFunc(f.parts, off, func(p flatPart, off int64) int { return compare(p.end, off+1) })
	for done := int64(0); done < n; {
		if i == len(f.parts) || f.parts[i].start >= off+n {
			clear(b[done:n])
			break
		}
		p := f.parts[i]
		if gap := p.start - (off + done); gap > 0 {
			clear(b[done : done+gap])
			done += gap
		}
		k := min(n-done, p.end-(off+done))
		if got, err := f.r.ReadAt(b[done:done+k], p.at+off+done-p.start); int64(got) < k {
			return int(done) + got, unexpectedEOF(err)
		}
		done += k
		i++
	}
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
