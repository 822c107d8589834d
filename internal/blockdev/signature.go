// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// probeHead is how much of the beginning of a device is looked at. All superblocks that are known here
	// begin in it, and in a livedump dump no page of memory is stored in it (page data begins later), so that
	// what an earlier dump holds is not taken for a file system.
	probeHead = 1 << 20
	// probeTail is how much of the end: RAID and GPT keep their second copy there.
	probeTail = 1 << 20
	// emptyHead is what must be zero on a device that is called empty.
	emptyHead = 64 << 10
)

// content is what is at both ends of a device.
type content struct {
	size int64
	head []byte
	tail []byte // ends with the device's last byte
}

func readContent(r io.ReaderAt, size int64) (content, error) {
	c := content{size: size, head: make([]byte, min(probeHead, size)), tail: make([]byte, min(probeTail, size))}
	if _, err := r.ReadAt(c.head, 0); err != nil {
		return c, fmt.Errorf("%w: reading the beginning of the device: %w", ErrIO, err)
	}
	if _, err := r.ReadAt(c.tail, size-int64(len(c.tail))); err != nil {
		return c, fmt.Errorf("%w: reading the end of the device: %w", ErrIO, err)
	}
	return c, nil
}

// at gives n bytes from an offset of the head, or nil.
func (c content) at(offset, n int) []byte {
	if offset < 0 || offset+n > len(c.head) {
		return nil
	}
	return c.head[offset : offset+n]
}

// fromEnd gives n bytes that begin so many bytes before the end, or nil.
func (c content) fromEnd(before, n int) []byte {
	start := len(c.tail) - before
	if start < 0 || start+n > len(c.tail) {
		return nil
	}
	return c.tail[start : start+n]
}

func (c content) has(offset int, magic string) bool {
	return bytes.Equal(c.at(offset, len(magic)), []byte(magic)) && magic != ""
}

// magics are signatures at fixed offsets from the beginning.
var magics = []struct {
	name   string
	offset int
	magic  string
}{
	{"GPT partition table", 512, "EFI PART"},
	{"GPT partition table", 4096, "EFI PART"},
	{"ext2/3/4 file system", 1080, "\x53\xef"},
	{"XFS file system", 0, "XFSB"},
	{"XFS log", 0, "\xfe\xed\xba\xbe"},
	{"btrfs file system", 0x10040, "_BHRfS_M"},
	{"bcachefs or bcache device", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	{"bcachefs file system", 4096 + 24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"},
	{"LUKS volume", 0, "LUKS\xba\xbe"},
	{"LUKS2 volume (second header)", 0x4000, "SKUL\xba\xbe"},
	{"LUKS2 volume (second header)", 0x8000, "SKUL\xba\xbe"},
	{"LVM physical volume", 0, "LABELONE"},
	{"LVM physical volume", 512, "LABELONE"},
	{"LVM physical volume", 1024, "LABELONE"},
	{"LVM physical volume", 1536, "LABELONE"},
	{"Linux RAID member (1.1)", 0, "\xfc\x4e\x2b\xa9"},
	{"Linux RAID member (1.2)", 4096, "\xfc\x4e\x2b\xa9"},
	{"swap area", 4096 - 10, "SWAPSPACE2"},
	{"swap area", 4096 - 10, "SWAP-SPACE"},
	{"hibernation image", 4096 - 10, "S1SUSPEND\x00"},
	{"hibernation image", 4096 - 10, "LINHIB0001"},
	{"swap area", 8192 - 10, "SWAPSPACE2"},
	{"swap area", 16384 - 10, "SWAPSPACE2"},
	{"swap area", 65536 - 10, "SWAPSPACE2"},
	{"F2FS file system", 1024, "\x10\x20\xf5\xf2"},
	{"EROFS file system", 1024, "\xe2\xe1\xf5\xe0"},
	{"HFS+ file system", 1024, "H+\x00\x04"},
	{"APFS container", 32, "NXSB"},
	{"NILFS2 file system", 1030, "\x34\x34"},
	{"JFS file system", 32768, "JFS1"},
	{"ReiserFS file system", 65536 + 52, "ReIsEr"},
	{"GFS2 file system", 65536, "\x01\x16\x19\x70"},
	{"OCFS2 file system", 8192, "OCFSV2"},
	{"OCFS2 file system", 4096, "OCFSV2"},
	{"ISO 9660 file system", 32769, "CD001"},
	{"UDF file system", 32769, "BEA01"},
	{"UDF file system", 32769, "NSR0"},
	{"SquashFS file system", 0, "hsqs"},
	{"NTFS file system", 3, "NTFS    "},
	{"exFAT file system", 3, "EXFAT   "},
	{"FAT file system", 54, "FAT12   "},
	{"FAT file system", 54, "FAT16   "},
	{"FAT file system", 82, "FAT32   "},
	{"Ceph BlueStore", 0, "bluestore block device"},
	{"VMFS volume", 0x100000 - 4096, "\x0d\xd0\x01\xc0"},
	{"ELF file", 0, "\x7fELF"},
	{"flattened kernel dump", 0, "makedumpfile"},
}

// kdumpMagics begin a kernel dump that a reader would take for one. One of livedump's own is recognised by its
// record, by the policy.
var kdumpMagics = []string{"KDUMP   ", "DISKDUMP"}

// foreignSignatures names everything known that is not livedump's. ownDump says that block 0 is that of a
// finished dump of livedump, which begins like any kernel dump.
func foreignSignatures(c content, ownDump bool) []string {
	var found []string
	seen := map[string]bool{}
	add := func(name string) {
		if !seen[name] {
			seen[name] = true
			found = append(found, name)
		}
	}
	for _, m := range magics {
		if c.has(m.offset, m.magic) {
			add(m.name)
		}
	}
	if !ownDump {
		for _, m := range kdumpMagics {
			if c.has(0, m) {
				add("kernel dump of another program")
			}
		}
	}
	// A boot sector; FAT and NTFS have it too, and have been named.
	if c.has(510, "\x55\xaa") {
		add("MBR partition table or boot sector")
	}
	if zfsLabel(c) {
		add("ZFS member")
	}
	for _, before := range []int{512, 4096} {
		if bytes.Equal(c.fromEnd(before, 8), []byte("EFI PART")) {
			add("GPT partition table (second copy)")
		}
	}
	if raidAtEnd(c) {
		add("Linux RAID member (at the end of the device)")
	}
	if firmwareRAID(c) {
		add("firmware RAID member")
	}
	if drbdAtEnd(c) {
		add("DRBD device")
	}
	return found
}

// zfsLabel looks for an uberblock of ZFS in the first label: an array from 128 KiB to 256 KiB.
func zfsLabel(c content) bool {
	for offset := 128 << 10; offset < 256<<10; offset += 1 << 10 {
		b := c.at(offset, 8)
		if b == nil {
			return false
		}
		if binary.LittleEndian.Uint64(b) == 0x00bab10c || binary.BigEndian.Uint64(b) == 0x00bab10c {
			return true
		}
	}
	return false
}

// raidAtEnd looks for md superblocks of versions 1.0 and 0.90.
func raidAtEnd(c content) bool {
	const magic = 0xa92b4efc
	is := func(offset int64) bool {
		b := c.fromEnd(int(c.size-offset), 4)
		return b != nil && (binary.LittleEndian.Uint32(b) == magic || binary.BigEndian.Uint32(b) == magic)
	}
	// 1.0: 8 KiB to 12 KiB before the end, at a multiple of 4 KiB.
	if c.size >= 8<<10 && is((c.size-8<<10)&^4095) {
		return true
	}
	// 0.90: the last whole 64 KiB.
	return c.size >= 64<<10 && is(c.size&^(64<<10-1)-64<<10)
}

// firmwareRAID looks for the metadata of RAID in firmware: Intel's and the common format of SNIA.
func firmwareRAID(c content) bool {
	if bytes.Equal(c.fromEnd(1024, 24), []byte("Intel Raid ISM Cfg Sig. ")) {
		return true
	}
	b := c.fromEnd(512, 4)
	return b != nil && binary.BigEndian.Uint32(b) == 0xde11de11
}

// drbdAtEnd looks for DRBD's internal metadata.
func drbdAtEnd(c content) bool {
	b := c.fromEnd(4096, 4096)
	if b == nil {
		return false
	}
	for _, magic := range []uint32{0x8374026b, 0x8374026c, 0x8374026d} {
		if binary.BigEndian.Uint32(b[60:]) == magic {
			return true
		}
	}
	return false
}

// isEmpty says whether the beginning is all zeros.
func isEmpty(c content) bool {
	head := c.head[:min(emptyHead, len(c.head))]
	return len(bytes.TrimLeft(head, "\x00")) == 0
}
