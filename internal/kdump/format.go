// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// The layout of struct disk_dump_header, struct kdump_sub_header and struct page_desc as x86-64
// compilers lay them out. The authority is what the readers do: makedumpfile's diskdump_mod.h,
// crash's diskdump.h and libkdumpfile's diskdump.c agree on these offsets.

const (
	// PageSize is the size of a page and of a block of the format, in bytes.
	PageSize = 4096

	headerVersion = 6

	headerBytes    = 464 // disk_dump_header without tasks[]
	subHeaderBytes = 104 // kdump_sub_header
	descBytes      = 24  // page_desc

	utsFieldBytes = 65 // one member of struct new_utsname
)

var (
	kdumpSignature    = []byte("KDUMP   ")
	diskdumpSignature = []byte("DISKDUMP")
)

// Flags of a page descriptor, and of the header's status.
const (
	descZlib   = 0x1
	descLZO    = 0x2
	descSnappy = 0x4
	descZstd   = 0x20

	descCompressed = descZlib | descLZO | descSnappy | descZstd

	statusIncomplete = 0x8
)

// Utsname is struct new_utsname of the dumped kernel.
type Utsname struct {
	Sysname    string `json:"sysname"`
	Nodename   string `json:"nodename"`
	Release    string `json:"release"`
	Version    string `json:"version"`
	Machine    string `json:"machine"`
	Domainname string `json:"domainname"`
}

func (u *Utsname) fields() [6]*string {
	return [6]*string{&u.Sysname, &u.Nodename, &u.Release, &u.Version, &u.Machine, &u.Domainname}
}

// header is struct disk_dump_header.
type header struct {
	version      int32
	uts          Utsname
	seconds      int64
	microseconds int64
	status       uint32
	blockSize    int32
	subHdrBlocks int32
	bitmapBlocks uint32 // of both bitmaps together
	maxMapnr     uint32 // saturated; the real one is in the sub header
	totalRAM     uint32
	device       uint32
	written      uint32
	currentCPU   uint32
	nrCPUs       int32
}

func (h *header) encode(b []byte) {
	copy(b, kdumpSignature)
	le := binary.LittleEndian
	le.PutUint32(b[8:], uint32(h.version))
	for i, f := range h.uts.fields() {
		putCString(b[12+i*utsFieldBytes:][:utsFieldBytes], *f)
	}
	// 402..407 align the timestamp.
	le.PutUint64(b[408:], uint64(h.seconds))
	le.PutUint64(b[416:], uint64(h.microseconds))
	le.PutUint32(b[424:], h.status)
	le.PutUint32(b[428:], uint32(h.blockSize))
	le.PutUint32(b[432:], uint32(h.subHdrBlocks))
	le.PutUint32(b[436:], h.bitmapBlocks)
	le.PutUint32(b[440:], h.maxMapnr)
	le.PutUint32(b[444:], h.totalRAM)
	le.PutUint32(b[448:], h.device)
	le.PutUint32(b[452:], h.written)
	le.PutUint32(b[456:], h.currentCPU)
	le.PutUint32(b[460:], uint32(h.nrCPUs))
}

// decodeHeader wants at least headerBytes, signature included.
func decodeHeader(b []byte) header {
	le := binary.LittleEndian
	h := header{
		version:      int32(le.Uint32(b[8:])),
		seconds:      int64(le.Uint64(b[408:])),
		microseconds: int64(le.Uint64(b[416:])),
		status:       le.Uint32(b[424:]),
		blockSize:    int32(le.Uint32(b[428:])),
		subHdrBlocks: int32(le.Uint32(b[432:])),
		bitmapBlocks: le.Uint32(b[436:]),
		maxMapnr:     le.Uint32(b[440:]),
		totalRAM:     le.Uint32(b[444:]),
		device:       le.Uint32(b[448:]),
		written:      le.Uint32(b[452:]),
		currentCPU:   le.Uint32(b[456:]),
		nrCPUs:       int32(le.Uint32(b[460:])),
	}
	for i, f := range h.uts.fields() {
		*f = cString(b[12+i*utsFieldBytes:][:utsFieldBytes])
	}
	return h
}

// subHeader is struct kdump_sub_header. Offsets are from the start of the file, in bytes.
type subHeader struct {
	physBase         uint64
	dumpLevel        int32
	split            int32
	startPFN         uint64
	endPFN           uint64
	offsetVMCoreInfo uint64
	sizeVMCoreInfo   uint64
	offsetNote       uint64
	sizeNote         uint64
	offsetErase      uint64
	sizeErase        uint64
	startPFN64       uint64
	endPFN64         uint64
	maxMapnr64       uint64
}

func (s *subHeader) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], s.physBase)
	le.PutUint32(b[8:], uint32(s.dumpLevel))
	le.PutUint32(b[12:], uint32(s.split))
	for i, v := range []uint64{
		s.startPFN, s.endPFN, s.offsetVMCoreInfo, s.sizeVMCoreInfo, s.offsetNote, s.sizeNote,
		s.offsetErase, s.sizeErase, s.startPFN64, s.endPFN64, s.maxMapnr64,
	} {
		le.PutUint64(b[16+8*i:], v)
	}
}

// decodeSubHeader wants at least subHeaderBytes.
func decodeSubHeader(b []byte) subHeader {
	le := binary.LittleEndian
	s := subHeader{
		physBase:  le.Uint64(b[0:]),
		dumpLevel: int32(le.Uint32(b[8:])),
		split:     int32(le.Uint32(b[12:])),
	}
	for i, v := range []*uint64{
		&s.startPFN, &s.endPFN, &s.offsetVMCoreInfo, &s.sizeVMCoreInfo, &s.offsetNote, &s.sizeNote,
		&s.offsetErase, &s.sizeErase, &s.startPFN64, &s.endPFN64, &s.maxMapnr64,
	} {
		*v = le.Uint64(b[16+8*i:])
	}
	return s
}

// pageDesc is struct page_desc. No reader looks at page_flags; livedump keeps a PageInfo there.
type pageDesc struct {
	offset    uint64
	size      uint32
	flags     uint32
	pageFlags uint64
}

func (d *pageDesc) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], d.offset)
	le.PutUint32(b[8:], d.size)
	le.PutUint32(b[12:], d.flags)
	le.PutUint64(b[16:], d.pageFlags)
}

func decodePageDesc(b []byte) pageDesc {
	le := binary.LittleEndian
	return pageDesc{
		offset:    le.Uint64(b[0:]),
		size:      le.Uint32(b[8:]),
		flags:     le.Uint32(b[12:]),
		pageFlags: le.Uint64(b[16:]),
	}
}

var errTooLongForUts = errors.New("longer than 64 bytes")

func putCString(b []byte, s string) {
	n := copy(b[:len(b)-1], s)
	clear(b[n:])
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func saturate32(v uint64) uint32 {
	return uint32(min(v, 1<<32-1))
}
