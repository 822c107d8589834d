// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"time"
)

// Session is the UUID of a session.
type Session [16]byte

// String gives the usual form, 8-4-4-4-12.
func (s Session) String() string {
	h := hex.EncodeToString(s[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// State says what block 0 says of the target.
type State uint32

// The states of a target.
const (
	StateInProgress State = 1 // a dump is being written, or its writer died
	StateFailed     State = 2 // the writer gave up
	StateComplete   State = 3 // a verified dump
)

func (s State) String() string {
	switch s {
	case StateInProgress:
		return "in progress"
	case StateFailed:
		return "failed"
	case StateComplete:
		return "complete"
	}
	return fmt.Sprintf("State(%d)", uint32(s))
}

// The record of livedump in block 0. Readers of the format look at the first 464 bytes of the block
// only. See docs/format.md for the offsets.
const (
	recordOffset  = 1024
	recordBytes   = 576
	recordVersion = 2 // 1 had SHA-256 of chunks

	reasonBytes = 256

	// pageInfoV1 says that page_desc.page_flags hold a PageInfo.
	pageInfoV1 = 1
)

var recordMagic = []byte("LIVEDUMP")

// Record is what livedump itself keeps in block 0.
type Record struct {
	State   State
	Session Session

	// Size of the dump in bytes, a multiple of 4096. Like all that follows only in a complete dump.
	Size       uint64
	DataOffset uint64 // where page data begins; the descriptor table ends before it
	SumsOffset uint64 // where the table of chunk checksums begins, and what it covers ends
	ChunkBytes uint32
	PageInfo   uint32
	LostOffset uint64 // table of lost ranges: pairs of first PFN and one past the last, 64 bits each
	LostRanges uint64

	Pages      uint64 // in the dump
	Lost       uint64 // left out because their content could not be kept
	Uncovered  uint64 // in the dump, but may not be from the one instant
	ZeroPages  uint64 // of Pages, full of zeros: all share one stored page
	FrozenAt   time.Time
	Stop       time.Duration
	ClassPages [classSlots]uint64 // all RAM by class, as of the stop

	Root [sha256.Size]byte // SHA-256 of the table of chunk checksums, that is of [SumsOffset, Size)

	// Reason of a failure, ASCII.
	Reason string

	blockSum [sha256.Size]byte
}

const blockSumOffset = recordOffset + 288

// encode puts the record into block 0 and seals the whole block.
func (r *Record) encode(block []byte) {
	b := block[recordOffset : recordOffset+recordBytes]
	clear(b)
	le := binary.LittleEndian
	copy(b, recordMagic)
	le.PutUint32(b[8:], recordVersion)
	le.PutUint32(b[12:], uint32(r.State))
	copy(b[16:32], r.Session[:])
	le.PutUint64(b[32:], r.Size)
	le.PutUint64(b[40:], r.DataOffset)
	le.PutUint64(b[48:], r.SumsOffset)
	le.PutUint32(b[56:], r.ChunkBytes)
	le.PutUint32(b[60:], r.PageInfo)
	le.PutUint64(b[64:], r.LostOffset)
	le.PutUint64(b[72:], r.LostRanges)
	le.PutUint64(b[80:], r.Pages)
	le.PutUint64(b[88:], r.Lost)
	le.PutUint64(b[96:], r.Uncovered)
	le.PutUint64(b[104:], r.ZeroPages)
	le.PutUint64(b[112:], uint64(r.FrozenAt.UnixNano()))
	le.PutUint64(b[120:], uint64(r.Stop))
	for i, n := range r.ClassPages {
		le.PutUint64(b[128+8*i:], n)
	}
	copy(b[256:288], r.Root[:])
	putCString(b[320:320+reasonBytes], ascii(r.Reason))
	r.blockSum = sha256.Sum256(block[:PageSize])
	copy(b[288:320], r.blockSum[:])
}

// decodeRecord reads the record of block 0. It returns false if there is none at all.
func decodeRecord(block []byte) (Record, bool, error) {
	b := block[recordOffset : recordOffset+recordBytes]
	if !bytes.Equal(b[:8], recordMagic) {
		return Record{}, false, nil
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != recordVersion {
		return Record{}, true, fmt.Errorf("%w: livedump record of version %d, this program knows %d", ErrVersion, v, recordVersion)
	}
	r := Record{
		State:      State(le.Uint32(b[12:])),
		Size:       le.Uint64(b[32:]),
		DataOffset: le.Uint64(b[40:]),
		SumsOffset: le.Uint64(b[48:]),
		ChunkBytes: le.Uint32(b[56:]),
		PageInfo:   le.Uint32(b[60:]),
		LostOffset: le.Uint64(b[64:]),
		LostRanges: le.Uint64(b[72:]),
		Pages:      le.Uint64(b[80:]),
		Lost:       le.Uint64(b[88:]),
		Uncovered:  le.Uint64(b[96:]),
		ZeroPages:  le.Uint64(b[104:]),
		FrozenAt:   time.Unix(0, int64(le.Uint64(b[112:]))).UTC(),
		Stop:       time.Duration(le.Uint64(b[120:])),
		Reason:     ascii(cString(b[320 : 320+reasonBytes])),
	}
	copy(r.Session[:], b[16:32])
	for i := range r.ClassPages {
		r.ClassPages[i] = le.Uint64(b[128+8*i:])
	}
	copy(r.Root[:], b[256:288])
	copy(r.blockSum[:], b[288:320])

	var sealed [PageSize]byte
	copy(sealed[:], block)
	clear(sealed[blockSumOffset : blockSumOffset+sha256.Size])
	if sha256.Sum256(sealed[:]) != r.blockSum {
		return r, true, fmt.Errorf("%w: checksum of block 0 does not match", ErrDamaged)
	}
	return r, true, nil
}

// marker makes block 0 of a target that is not a dump.
func (r *Record) marker(block []byte) {
	clear(block[:PageSize])
	text := fmt.Sprintf("LIVEDUMP %s, session %s: this is not a dump", r.State, r.Session)
	if r.State == StateInProgress {
		text += " (yet)"
	}
	copy(block, text+"\n")
	r.encode(block)
}

// IsMark says whether a block 0 says that the target is not a dump (yet). It tells nothing of memory.
func IsMark(block []byte) bool { return bytes.HasPrefix(block, recordMagic) }

// ReadRecord reads the record of livedump from block 0 of r, whatever its state. found is false if
// the block carries none, which is no error.
func ReadRecord(r io.ReaderAt) (rec Record, found bool, err error) {
	buf, err := newAligned(PageSize)
	if err != nil {
		return Record{}, false, err
	}
	defer buf.free()
	if n, err := r.ReadAt(buf.b, 0); n < PageSize {
		return Record{}, false, fmt.Errorf("reading block 0: %w", unexpectedEOF(err))
	}
	return decodeRecord(buf.b)
}

// MarkFailed writes block 0 of a target so that it says that its dump failed, and syncs it. A
// Writer does this itself in Abort.
func MarkFailed(out Output, session Session, reason error) error {
	return writeMarker(out, Record{State: StateFailed, Session: session, FrozenAt: time.Unix(0, 0), Reason: reason.Error()})
}

func writeMarker(out Output, r Record) error {
	buf, err := newAligned(PageSize)
	if err != nil {
		return err
	}
	defer buf.free()
	r.marker(buf.b)
	if err := writeAt(out, buf.b, 0); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("syncing block 0: %w", err)
	}
	return nil
}

// ascii keeps a text printable wherever it is shown.
func ascii(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
