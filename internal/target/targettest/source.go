// SPDX-License-Identifier: Apache-2.0

package targettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
)

// pages of the source: page i is page frame pfn(i).
const (
	pages    = 4000
	lostPage = 17
	batch    = 100
)

// pfn leaves holes, as excluded pages do.
func pfn(i int) uint64 { return 1000 + uint64(i) + uint64(i/64)*7 }

func lost(i int) bool { return i == lostPage }

// page is the content of page i: noise, but for every fourth, which is of zeros.
func page(i int) []byte {
	b := make([]byte, kdump.PageSize)
	if i%4 != 0 {
		_, _ = rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(b) // never fails
	}
	return b
}

func meta() kdump.Meta {
	const info = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\nNUMBER(phys_base)=4096\n"
	m := kdump.Meta{
		Session: kdump.Session{0x7a, 15: 1},
		Utsname: kdump.Utsname{Sysname: "Linux", Nodename: "n1", Release: "6.1.0-test", Version: "#1", Machine: "x86_64"},
		MaxPFN:  pfn(pages) + 100, Pages: pages, NrCPUs: 1, DumpLevel: 31,
		RAM:      []kdump.PFNRange{{Start: 0, End: pfn(pages) + 100}},
		FrozenAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Stop: time.Millisecond,
	}
	prstatus := make([]byte, 336)
	prstatus[32] = 1 // pr_pid
	m.Notes = append(note("CORE", 1, prstatus), note("VMCOREINFO", 0, []byte(info))...)
	m.VMCoreInfoBytes = uint64(len(info))
	m.VMCoreInfoOffset = uint64(len(m.Notes) - (len(info)+3)&^3)
	return m
}

func note(name string, kind uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, kind)
	b = append(append(b, name...), make([]byte, 4-len(name)%4)...)
	return append(append(b, desc...), make([]byte, -len(desc)&3)...)
}

// add gives pages to a writer, from the last batch to the first.
func add(w format.Writer, from, to int) error {
	for end := to; end > from; end -= batch {
		var refs []kdump.PageRef
		var data []byte
		for i := max(from, end-batch); i < end; i++ {
			ref := kdump.PageRef{PFN: pfn(i), Class: kdump.ClassKernel}
			if lost(i) {
				ref.Flags = kdump.PageLost
			}
			refs, data = append(refs, ref), append(data, page(i)...)
		}
		if err := w.Add(refs, data); err != nil {
			return err
		}
	}
	return nil
}

// unflatten makes the plain dump of a flattened stream, by the description of the format and nothing of this project.
func unflatten(b []byte) ([]byte, error) {
	if len(b) < 4096 || string(b[:13]) != "makedumpfile\x00" {
		return nil, errors.New("not a flattened stream")
	}
	be := binary.BigEndian
	if kind, version := be.Uint64(b[16:]), be.Uint64(b[24:]); kind != 1 || version != 1 {
		return nil, fmt.Errorf("a flattened stream of type %d, version %d", kind, version)
	}
	var out []byte
	for b = b[4096:]; ; {
		if len(b) < 16 {
			return nil, errors.New("the stream has no end")
		}
		off, n := int64(be.Uint64(b)), int64(be.Uint64(b[8:]))
		b = b[16:]
		if off == -1 && n == -1 {
			if len(b) > 0 {
				return nil, fmt.Errorf("%d bytes follow the end", len(b))
			}
			return out, nil
		}
		if off < 0 || n < 0 || off+n > 1<<30 || n > int64(len(b)) {
			return nil, fmt.Errorf("a record of %d bytes for %d, %d are left", n, off, len(b))
		}
		if grow := off + n - int64(len(out)); grow > 0 {
			out = append(out, make([]byte, grow)...)
		}
		copy(out[off:], b[:n])
		b = b[n:]
	}
}
