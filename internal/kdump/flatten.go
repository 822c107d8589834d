// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
)

// The flattened stream of makedumpfile: a block that says what it is, then records, each with the place in the plain dump
// where its bytes belong, in any order, and an end. Numbers are big-endian.
const (
	flatSignature   = "makedumpfile"
	flatHeaderBytes = 4096
	flatType        = 1
	flatVersion     = 1
	flatRecordBytes = 16 // offset and number of the bytes that follow
	flatEnd         = -1 // for both
)

// NewFlattenedWriter is NewWriter for a target that takes bytes one after the other: what it gets is the flattened stream of
// the dump. Nothing is read back. What makes it a dump, the header in the record for block 0 and the end,
// comes last, in Finish; Abort writes nothing. Summary tells the size of the plain dump.
func NewFlattenedWriter(w io.Writer, meta Meta, opts Options) (*Writer, error) {
	f := &flattener{w: w}
	return create(f, form{flat: f}, meta, opts)
}

// flattener is an Output that makes records of writes.
type flattener struct {
	w io.Writer

	mu    sync.Mutex
	begun bool
	err   error // that ended the stream
	head  [flatRecordBytes]byte
}

func (f *flattener) WriteAt(b []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin()
	f.record(off, int64(len(b)))
	f.write(b)
	if f.err != nil {
		return 0, f.err
	}
	return len(b), nil
}

func (f *flattener) begin() {
	if f.begun {
		return
	}
	f.begun = true
	var b [flatHeaderBytes]byte
	copy(b[:], flatSignature)
	binary.BigEndian.PutUint64(b[16:], flatType)
	binary.BigEndian.PutUint64(b[24:], flatVersion)
	f.write(b[:])
}

func (f *flattener) record(off, n int64) {
	binary.BigEndian.PutUint64(f.head[:], uint64(off))
	binary.BigEndian.PutUint64(f.head[8:], uint64(n))
	f.write(f.head[:])
}

func (f *flattener) write(b []byte) {
	if f.err != nil {
		return
	}
	n, err := f.w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	f.err = err
}

// end says that the stream is whole.
func (f *flattener) end() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin()
	f.record(flatEnd, flatEnd)
	if f.err != nil {
		return fmt.Errorf("ending the stream: %w", f.err)
	}
	f.err = errors.New("the stream has ended")
	return nil
}

func (f *flattener) ReadAt([]byte, int64) (int, error) {
	return 0, errors.New("a stream cannot be read back")
}

func (f *flattener) Sync() error { return nil }

// Size is as good as unlimited.
func (f *flattener) Size() int64 { return math.MaxInt64 / 2 }
