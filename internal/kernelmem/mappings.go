// SPDX-License-Identifier: Apache-2.0

package kernelmem

import (
	"errors"
	"fmt"

	"livedump.io/internal/kdump"
)

const (
	// firstDirect is the first entry of the top table that can be the direct map's, with four levels and with five. Where in
	// it, or in one of the next, the map begins is random.
	firstDirect = 273

	directAlign = 1 << 30
	imageAlign  = 2 << 20
)

// Mappings is a kdump.Mappings: it finds the direct map and the kernel's image in the page tables.
func Mappings(info kdump.VMCoreInfo, read func(pfn uint64, b []byte) error) (direct, image kdump.Mapping, err error) {
	m, err := New(info, cached(read))
	if err != nil {
		return direct, image, err
	}
	if direct, err = m.directMap(); err != nil {
		return direct, image, err
	}
	image, err = m.image()
	return direct, image, err
}

// cached keeps pages: every step looks at the same tables from the top on.
func cached(read PageReader) PageReader {
	const most = 256
	pages := map[uint64][]byte{}
	return func(pfn uint64, b []byte) error {
		if page, ok := pages[pfn]; ok {
			copy(b, page)
			return nil
		}
		if err := read(pfn, b); err != nil {
			return err
		}
		if len(pages) == most {
			clear(pages)
		}
		pages[pfn] = append([]byte{}, b[:kdump.PageSize]...)
		return nil
	}
}

// directMap is where physical address 0 would be seen. Nothing else of the kernel lies below the direct map.
func (m *Memory) directMap() (kdump.Mapping, error) {
	va, phys, found, err := m.firstLeaf(m.root, m.levels, firstDirect, ^uint64(0)<<(12+9*m.levels))
	switch {
	case err != nil:
		return kdump.Mapping{}, fmt.Errorf("looking for the direct map: %w", err)
	case !found || (va-phys)%directAlign != 0:
		return kdump.Mapping{}, errors.New("there is no direct map where it is expected")
	}
	return kdump.Mapping{Virtual: va - phys, Bytes: 1 << 46}, nil
}

// firstLeaf is the first mapping in a table, from an entry on.
func (m *Memory) firstLeaf(table uint64, level int, from, va uint64) (at, phys uint64, found bool, err error) {
	shift := uint(12 + 9*(level-1))
	for i := from; i < 512; i++ {
		entry, err := m.entry(table, i)
		if err != nil {
			return 0, 0, false, err
		}
		if entry&present == 0 {
			continue
		}
		at := va | i<<shift
		if isLeaf(entry, level) {
			return at, entry & address &^ (1<<shift - 1), true, nil
		}
		if at, phys, found, err := m.firstLeaf(entry&address, level-1, 0, at); found || err != nil {
			return at, phys, found, err
		}
	}
	return 0, 0, false, nil
}

// image is from the kernel's text to the last of its data.
func (m *Memory) image() (kdump.Mapping, error) {
	text, err := m.Symbol("_stext")
	if err != nil {
		return kdump.Mapping{}, err
	}
	start := text &^ (imageAlign - 1)
	i := kdump.Mapping{Virtual: start, Physical: start - kernelMap + m.physBase}
	for va := start; va >= start && va < kernelMapEnd; {
		phys, size, err := m.walk(va)
		if err != nil && !errors.Is(err, ErrUnmapped) {
			return kdump.Mapping{}, fmt.Errorf("looking for the kernel's image: %w", err)
		}
		end := va&^(size-1) + size
		if err == nil && phys-i.Physical == va-start {
			i.Bytes = end - start
		}
		va = end
	}
	if i.Bytes == 0 {
		return kdump.Mapping{}, errors.New("the kernel's image is not mapped where its symbols are")
	}
	return i, nil
}
