// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"livedump.io/internal/kdump"
)

const testSize = 8 * mib

func blank() []byte { return make([]byte, testSize) }

func contentOf(t *testing.T, disk []byte) content {
	t.Helper()
	c, err := readContent(bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestKnownSignatures(t *testing.T) {
	put := func(offset int, data string) []byte {
		disk := blank()
		copy(disk[offset:], data)
		return disk
	}
	le32 := func(v uint32) string { return string(binary.LittleEndian.AppendUint32(nil, v)) }
	for name, disk := range map[string][]byte{
		"ext2/3/4":              put(1024+56, "\x53\xef"),
		"XFS":                   put(0, "XFSB"),
		"btrfs":                 put(65536+64, "_BHRfS_M"),
		"swap":                  put(4086, "SWAPSPACE2"),
		"LVM":                   put(512, "LABELONE"),
		"LUKS":                  put(0, "LUKS\xba\xbe\x00\x02"),
		"GPT":                   put(512, "EFI PART"),
		"GPT partition table (": put(testSize-512, "EFI PART"),
		"MBR":                   put(510, "\x55\xaa"),
		"(1.1)":                 put(0, le32(0xa92b4efc)),
		"(1.2)":                 put(4096, le32(0xa92b4efc)),
		"at the end":            put(testSize-8192, le32(0xa92b4efc)),
		"RAID member (at":       put(testSize-65536, le32(0xa92b4efc)),
		"ZFS":                   put(128<<10+7<<10, "\x0c\xb1\xba\x00\x00\x00\x00\x00"),
		"firmware":              put(testSize-1024, "Intel Raid ISM Cfg Sig. 1.3.00"),
		"DRBD":                  put(testSize-4096+60, "\x83\x74\x02\x6d"),
		"bcache":                put(4096+24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
		"kernel dump":           put(0, "KDUMP   \x06\x00\x00\x00"),
		"ELF":                   put(0, "\x7fELF\x02"),
		"flattened":             put(0, "makedumpfile\x00"),
		"NTFS":                  put(3, "NTFS    "),
	} {
		found := foreignSignatures(contentOf(t, disk), false)
		if !slices.ContainsFunc(found, func(s string) bool { return strings.Contains(s, name) }) {
			t.Errorf("%s: found %q", name, found)
		}
		for _, p := range []Policy{Never, IfEmptyOrLiveDump} {
			if err := checkContent(contentOf(t, disk), p, "disk"); !errors.Is(err, ErrNotEmpty) {
				t.Errorf("%s, policy %s: got %v, want %v", name, p, err, ErrNotEmpty)
			}
		}
	}
	if found := foreignSignatures(contentOf(t, blank()), false); len(found) > 0 {
		t.Errorf("an empty disk: found %q", found)
	}
}

// TestSignatureTable: every entry is within what is read, and is found where it says.
func TestSignatureTable(t *testing.T) {
	for _, m := range magics {
		disk := blank()
		copy(disk[m.offset:], m.magic)
		if m.offset+len(m.magic) > probeHead {
			t.Errorf("%s lies beyond what is read", m.name)
		}
		if found := foreignSignatures(contentOf(t, disk), false); !slices.Contains(found, m.name) {
			t.Errorf("%s: found %q", m.name, found)
		}
	}
}

func TestUnknownData(t *testing.T) {
	for _, offset := range []int{0, 511, 4096, emptyHead - 1} {
		disk := blank()
		disk[offset] = 1
		for _, p := range []Policy{Never, IfEmptyOrLiveDump} {
			if err := checkContent(contentOf(t, disk), p, "disk"); !errors.Is(err, ErrNotEmpty) {
				t.Errorf("a byte at %d, policy %s: got %v, want %v", offset, p, err, ErrNotEmpty)
			}
		}
	}
	for _, p := range []Policy{Never, IfEmptyOrLiveDump} {
		if err := checkContent(contentOf(t, blank()), p, "disk"); err != nil {
			t.Errorf("empty, policy %s: %v", p, err)
		}
	}
}

// TestRealFileSystems asks the programs that make them.
func TestRealFileSystems(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
		size int64
	}{
		{[]string{"mkfs.ext4", "-q", "-F"}, "ext2/3/4", 16 * mib},
		{[]string{"mkfs.xfs", "-q", "-f"}, "XFS", 320 * mib},
		{[]string{"mkfs.btrfs", "-q", "-f"}, "btrfs", 128 * mib},
		{[]string{"mkfs.vfat"}, "FAT", 16 * mib},
		{[]string{"mkswap"}, "swap", 16 * mib},
	} {
		t.Run(tc.args[0], func(t *testing.T) {
			program := tool(t, tc.args[0])
			path := filepath.Join(t.TempDir(), "disk")
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(tc.size); err != nil {
				t.Fatal(err)
			}
			// What livedump left behind must not hide what came after it.
			if err := kdump.MarkFailed(fileOutput{f, tc.size}, kdump.Session{1}, errors.New("test")); err != nil {
				t.Fatal(err)
			}
			runTool(t, append(append([]string{program}, tc.args[1:]...), path)...)
			c, err := readContent(f, tc.size)
			if err != nil {
				t.Fatal(err)
			}
			found := foreignSignatures(c, false)
			if !slices.ContainsFunc(found, func(s string) bool { return strings.Contains(s, tc.want) }) {
				t.Errorf("found %q", found)
			}
			if err := checkContent(c, IfEmptyOrLiveDump, "disk"); !errors.Is(err, ErrNotEmpty) {
				t.Errorf("got %v, want %v", err, ErrNotEmpty)
			}
		})
	}
}

type fileOutput struct {
	*os.File
	size int64
}

func (f fileOutput) Size() int64 { return f.size }

// TestRAIDOverDump: RAID 1.2 and ZFS leave block 0 alone, so the record of a dump survives them.
func TestRAIDOverDump(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(testSize); err != nil {
		t.Fatal(err)
	}
	if err := kdump.MarkFailed(fileOutput{f, testSize}, kdump.Session{1}, errors.New("test")); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkContent(contentOf(t, disk), IfEmptyOrLiveDump, "disk"); err != nil {
		t.Fatal(err)
	}
	copy(disk[4096:], "\xfc\x4e\x2b\xa9")
	if err := checkContent(contentOf(t, disk), IfEmptyOrLiveDump, "disk"); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("got %v, want %v", err, ErrNotEmpty)
	}
}
