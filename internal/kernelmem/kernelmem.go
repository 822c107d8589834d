// SPDX-License-Identifier: Apache-2.0

// Package kernelmem reads the kernel's virtual memory of x86-64 from a dump, with what VMCOREINFO says
// and no debug information.
package kernelmem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"livedump.io/internal/kdump"
)

// ErrUnmapped: there is nothing at the address.
var ErrUnmapped = errors.New("address is not mapped")

// PageReader reads one page of physical memory.
type PageReader func(pfn uint64, b []byte) error

// Memory is the kernel's memory. One goroutine uses it at a time.
type Memory struct {
	Info kdump.VMCoreInfo

	read     PageReader
	physBase uint64
	root     uint64 // physical address of the kernel's page tables
	levels   int
	encrypt  uint64 // bits of entries that are not part of an address

	pfn  uint64 // of page
	have bool
	page [kdump.PageSize]byte
}

const (
	kernelMap    = 0xffffffff80000000 // where the kernel's image is, less phys_base
	kernelMapEnd = 0xffffffffc0000000 // modules begin

	present = 1 << 0
	huge    = 1 << 7
	address = 0x000ffffffffff000
)

// New makes a Memory from a dump's VMCOREINFO and pages.
func New(info kdump.VMCoreInfo, read PageReader) (*Memory, error) {
	base, err := info.PhysBase()
	if err != nil {
		return nil, err
	}
	m := &Memory{Info: info, read: read, physBase: uint64(base), levels: 4}
	if info["NUMBER(pgtable_l5_enabled)"] == "1" {
		m.levels = 5
	}
	// Not in the VMCOREINFO of every kernel.
	m.encrypt, _ = strconv.ParseUint(info["NUMBER(sme_mask)"], 0, 64)
	top, err := m.Symbol("swapper_pg_dir")
	if err != nil {
		return nil, err
	}
	if m.root, err = m.physical(top); err != nil {
		return nil, err
	}
	return m, nil
}

// Symbol is the address of a symbol that VMCOREINFO names.
func (m *Memory) Symbol(name string) (uint64, error) {
	return m.number("SYMBOL("+name+")", 16)
}

// Offset is that of a member, as "struct.member".
func (m *Memory) Offset(member string) (uint64, error) {
	n, err := m.number("OFFSET("+member+")", 10)
	if err == nil && n > 1<<20 {
		return 0, fmt.Errorf("VMCOREINFO: OFFSET(%s) is %d", member, n)
	}
	return n, err
}

// StructSize is that of a structure.
func (m *Memory) StructSize(name string) (uint64, error) {
	n, err := m.number("SIZE("+name+")", 10)
	if err == nil && (n == 0 || n > 1<<20) {
		return 0, fmt.Errorf("VMCOREINFO: SIZE(%s) is %d", name, n)
	}
	return n, err
}

func (m *Memory) number(key string, base int) (uint64, error) {
	s, ok := m.Info[key]
	if !ok {
		return 0, fmt.Errorf("VMCOREINFO has no %s", key)
	}
	n, err := strconv.ParseUint(s, base, 64)
	if err != nil {
		return 0, fmt.Errorf("VMCOREINFO: %s: %w", key, err)
	}
	return n, nil
}

// Read reads len(b) bytes from a virtual address.
func (m *Memory) Read(addr uint64, b []byte) error {
	for len(b) > 0 {
		phys, err := m.physical(addr)
		if err != nil {
			return err
		}
		n := min(len(b), int(kdump.PageSize-addr%kdump.PageSize))
		if err := m.readPhysical(phys, b[:n]); err != nil {
			return fmt.Errorf("address %#x: %w", addr, err)
		}
		b, addr = b[n:], addr+uint64(n)
	}
	return nil
}

// Uint32 and Uint64 read a number.
func (m *Memory) Uint32(addr uint64) (uint32, error) {
	var b [4]byte
	err := m.Read(addr, b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}

func (m *Memory) Uint64(addr uint64) (uint64, error) {
	var b [8]byte
	err := m.Read(addr, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

// readPhysical reads within one page.
func (m *Memory) readPhysical(phys uint64, b []byte) error {
	pfn, off := phys/kdump.PageSize, phys%kdump.PageSize
	if !m.have || m.pfn != pfn {
		m.have = false
		if err := m.read(pfn, m.page[:]); err != nil {
			return err
		}
		m.pfn, m.have = pfn, true
	}
	copy(b, m.page[off:])
	return nil
}

// physical translates an address. The kernel's own image needs no page tables.
func (m *Memory) physical(addr uint64) (uint64, error) {
	if addr >= kernelMap && addr < kernelMapEnd {
		return addr - kernelMap + m.physBase, nil
	}
	phys, _, err := m.walk(addr)
	return phys, err
}

// walk looks an address up in the page tables. size is that of the page it is in, or, with ErrUnmapped, of the
// stretch in which there is none.
func (m *Memory) walk(addr uint64) (phys, size uint64, err error) {
	table := m.root
	for level := m.levels; level > 0; level-- {
		shift := uint(12 + 9*(level-1))
		entry, err := m.entry(table, addr>>shift&511)
		if err != nil {
			return 0, 0, fmt.Errorf("page tables of address %#x: %w", addr, err)
		}
		if entry&present == 0 {
			return 0, 1 << shift, fmt.Errorf("%w: %#x", ErrUnmapped, addr)
		}
		table = entry & address
		if isLeaf(entry, level) {
			return table&^(1<<shift-1) | addr&(1<<shift-1), 1 << shift, nil
		}
	}
	return 0, kdump.PageSize, fmt.Errorf("%w: %#x", ErrUnmapped, addr)
}

func (m *Memory) entry(table, index uint64) (uint64, error) {
	var b [8]byte
	err := m.readPhysical(table+index*8, b[:])
	return binary.LittleEndian.Uint64(b[:]) &^ m.encrypt, err
}

func isLeaf(entry uint64, level int) bool { return level == 1 || level <= 3 && entry&huge != 0 }

// Utsname is what the kernel says it is, read from its memory.
func (m *Memory) Utsname() (kdump.Utsname, error) {
	at, err := m.Symbol("init_uts_ns")
	if err != nil {
		return kdump.Utsname{}, err
	}
	name, err := m.Offset("uts_namespace.name")
	if err != nil {
		name = 4 // behind a reference count, before VMCOREINFO said so
	}
	const field = 65
	var b [6 * field]byte
	if err := m.Read(at+name, b[:]); err != nil {
		return kdump.Utsname{}, fmt.Errorf("reading the kernel's utsname: %w", err)
	}
	var f [6]string
	for i := range f {
		s, _, _ := bytes.Cut(b[i*field:][:field], []byte{0})
		f[i] = string(s)
	}
	u := kdump.Utsname{Sysname: f[0], Nodename: f[1], Release: f[2], Version: f[3], Machine: f[4], Domainname: f[5]}
	if u.Sysname != "Linux" || u.Release != m.Info["OSRELEASE"] {
		return kdump.Utsname{}, fmt.Errorf("there is no utsname of kernel %s at %#x", m.Info["OSRELEASE"], at+name)
	}
	return u, nil
}
