// SPDX-License-Identifier: Apache-2.0

package kernelmem

import (
	"bytes"
	"encoding/binary"
	"testing"

	"livedump.io/internal/kdump"
)

// FuzzMemory walks page tables that say anything, with a VMCOREINFO that does.
func FuzzMemory(f *testing.F) {
	const info = "OSRELEASE=6.1.0\nNUMBER(phys_base)=0\nSYMBOL(swapper_pg_dir)=ffffffff80000000\nSYMBOL(init_uts_ns)=ffff888000001000\n"
	le := binary.LittleEndian
	tables := make([]byte, 5*kdump.PageSize)
	le.PutUint64(tables[273*8:], 0x1000|present)               // ffff8880...
	le.PutUint64(tables[kdump.PageSize:], 0x2000|present)      // of 1 GiB
	le.PutUint64(tables[kdump.PageSize+8:], 0|present|huge)    // a page of 1 GiB
	le.PutUint64(tables[2*kdump.PageSize:], 0x3000|present)    // of 2 MiB
	le.PutUint64(tables[2*kdump.PageSize+8:], 0|present|huge)  // a page of 2 MiB
	le.PutUint64(tables[3*kdump.PageSize+8:], 0x4000|present)  // a page
	le.PutUint64(tables[3*kdump.PageSize+16:], 0x3000|present) // the table itself
	for i, s := range []string{"Linux", "node", "6.1.0", "#1", "x86_64", "(none)"} {
		copy(tables[4*kdump.PageSize+4+65*i:], s)
	}
	f.Add([]byte(info), tables, uint64(0xffff888000001ffc), uint16(16))
	f.Add([]byte(info+"NUMBER(pgtable_l5_enabled)=1\nNUMBER(sme_mask)=0x800000000000\n"), tables, uint64(0xffff888040000000), uint16(5000))
	f.Add([]byte("NUMBER(phys_base)=-9223372036854775808\nSYMBOL(swapper_pg_dir)=ffffffffbfffffff\n"), tables, ^uint64(0), uint16(9))
	f.Fuzz(func(t *testing.T, info, mem []byte, addr uint64, n uint16) {
		reads := 0
		m, err := New(kdump.ParseVMCoreInfo(info), func(pfn uint64, b []byte) error {
			if reads++; reads > 1000 {
				t.Fatal("it reads and reads")
			}
			if pfn >= uint64(len(mem))/kdump.PageSize {
				return kdump.ErrNotRAM
			}
			copy(b, mem[pfn*kdump.PageSize:][:kdump.PageSize])
			return nil
		})
		if err != nil {
			return
		}
		// In two parts or at once: the same.
		whole, parts := make([]byte, n), make([]byte, n)
		if err := m.Read(addr, whole); err == nil {
			err1, err2 := m.Read(addr, parts[:n/2]), m.Read(addr+uint64(n/2), parts[n/2:])
			if err1 != nil || err2 != nil || !bytes.Equal(whole, parts) {
				t.Fatalf("%d bytes at %#x: %v, %v, or other content in parts", n, addr, err1, err2)
			}
		}
		_, _ = m.Utsname()
	})
}
