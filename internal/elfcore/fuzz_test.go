// SPDX-License-Identifier: Apache-2.0

package elfcore

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"livedump.io/internal/kdump"
)

// core is a vmcore with notes and some segments of memory, which overlap.
func core(segments [][3]uint64) []byte {
	le := binary.LittleEndian
	note := []byte{11, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 'V', 'M', 'C', 'O', 'R', 'E', 'I', 'N', 'F', 'O', 0, 0, 'A', '=', '1', '\n', 'B', '=', '2', '\n'}
	b := make([]byte, 64+56*(1+len(segments)))
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 4)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], uint16(1+len(segments)))
	header := func(i int, typ uint32, off, paddr, filesz, memsz uint64) {
		h := b[64+56*i:]
		le.PutUint32(h, typ)
		for k, v := range []uint64{off, 0, paddr, filesz, memsz} {
			le.PutUint64(h[8+8*k:], v)
		}
	}
	at := uint64(len(b))
	header(0, 4, at, 0, uint64(len(note)), 0)
	at += uint64(len(note))
	for i, s := range segments {
		header(1+i, 1, at, s[0], s[1], s[2])
		at += s[1]
	}
	b = append(b, note...)
	return append(b, make([]byte, at-uint64(len(b)))...)
}

// FuzzOpen reads vmcores that say anything of themselves.
func FuzzOpen(f *testing.F) {
	f.Add(core([][3]uint64{{0x1000, 0x3000, 0x3000}, {0x2000, 0x1800, 0x4000}, {0x10010, 0x2000, 0x2000}}))
	f.Add(core([][3]uint64{{1<<46 - 0x2000, 0x1000, 0x2000}}))
	f.Add(core([][3]uint64{{0, 0, 1 << 46}}))
	f.Add(core(nil))
	f.Add([]byte("\x7fELF"))
	path := filepath.Join(f.TempDir(), "vmcore")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		defer func() {
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20+64*uint64(len(b)) {
				t.Errorf("%d bytes of memory for a file of %d", n, len(b))
			}
		}()
		c, err := Open(path)
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.VMCoreInfo()
		_, _ = c.Info()
		pages := map[uint64][]byte{}
		err = c.EachPage(context.Background(), 1, func(first uint64, data []byte) error {
			for i := 0; i < len(data); i += kdump.PageSize {
				pfn := first + uint64(i/kdump.PageSize)
				if pages[pfn] != nil || pfn >= c.MaxPFN() {
					t.Fatalf("page frame %#x is there twice, or not below %#x", pfn, c.MaxPFN())
				}
				pages[pfn] = bytes.Clone(data[i:][:kdump.PageSize])
			}
			return nil
		})
		if err != nil {
			t.Fatalf("what was opened cannot be read: %v", err)
		}
		if uint64(len(pages)) != c.Pages() {
			t.Fatalf("%d pages came, %d were announced", len(pages), c.Pages())
		}
		page := make([]byte, kdump.PageSize)
		for pfn, want := range pages {
			if err := c.ReadPage(pfn, page); err != nil || !bytes.Equal(page, want) {
				t.Fatalf("page frame %#x: %v, or other content", pfn, err)
			}
		}
		_, _ = c.LostPages()
		_, _ = c.Verify(context.Background())
	})
}
