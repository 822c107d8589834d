// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"fmt"
	"hash/crc32"
)

// Class is what a page was at the stop: enum livedump_class of the module's ABI.
type Class uint8

// The classes, with the numbers of the ABI.
const (
	ClassUnknown Class = iota
	ClassKernel
	ClassCache
	ClassCachePrivate
	ClassUser
	ClassHugetlb
	ClassFree
	ClassOffline
	ClassHwpoison
	ClassSelf
	ClassUnmapped

	classSlots = 16
)

var classNames = [...]string{
	"Unknown", "Kernel", "Cache", "CachePrivate", "User", "Hugetlb", "Free", "Offline", "Hwpoison", "Self", "Unmapped",
}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("Class(%d)", uint8(c))
}

// PageFlags are the LIVEDUMP_PAGE_* bits of the module's ABI.
type PageFlags uint8

// The flags, with the bits of the ABI.
const (
	PageCopy      PageFlags = 1 << 0 // came from the reserve
	PageLost      PageFlags = 1 << 1 // the content is gone; the page is left out
	PageUncovered PageFlags = 1 << 2 // may not be from the one instant
	PageTable     PageFlags = 1 << 3 // the processor may have set Accessed and Dirty bits in it since

	pageFlagsKnown = PageCopy | PageLost | PageUncovered | PageTable
)

// PageRef names a page that is handed to the Writer.
type PageRef struct {
	PFN   uint64
	Class Class
	Flags PageFlags
}

// PageInfo is what livedump keeps of a dumped page in page_desc.page_flags.
type PageInfo struct {
	Class Class
	Flags PageFlags
	CRC   uint32 // CRC-32C of the page's 4096 bytes, uncompressed
}

func (p PageInfo) encode() uint64 {
	return uint64(p.CRC)<<32 | uint64(p.Flags)<<8 | uint64(p.Class)
}

func decodePageInfo(v uint64) PageInfo {
	return PageInfo{Class: Class(v), Flags: PageFlags(v >> 8), CRC: uint32(v >> 32)}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func pageCRC(page []byte) uint32 { return crc32.Checksum(page, castagnoli) }

// PFNRange is a range of page frames, [Start, End).
type PFNRange struct {
	Start uint64 `json:"start"`
	End   uint64 `json:"end"`
}
