// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"livedump.io/internal/kdump"
)

// Comparison is one file of pages compared with the streamed dump.
type Comparison struct {
	File string `json:"file"`
	// Pages that the file has and that are not all zeros.
	Pages uint64 `json:"pages"`
	// Equal in file and dump.
	Equal uint64 `json:"equal"`
	// Mismatches differ, though the dump says that they are of the one instant.
	Mismatches uint64 `json:"mismatches"`
	// UncoveredDiffer differ, and the dump says that they may.
	UncoveredDiffer uint64 `json:"uncovered_differ"`
	// OnlyInFile are not zeros and not in the dump; OnlyInDump the other way round.
	OnlyInFile uint64 `json:"only_in_file"`
	OnlyInDump uint64 `json:"only_in_dump"`

	// examples are page frames of what should not be.
	examples []string
}

const maxExamples = 8

// err says what is wrong, if anything is.
func (c *Comparison) err() error {
	switch {
	case c.Equal == 0:
		return fmt.Errorf("%s: no page was compared", c.File)
	case c.Mismatches+c.OnlyInFile+c.OnlyInDump > 0:
		return fmt.Errorf("%s: %d pages differ from the streamed dump, %d are in the file only, %d in the dump only: %v",
			c.File, c.Mismatches, c.OnlyInFile, c.OnlyInDump, c.examples)
	}
	return nil
}

func (c *Comparison) example(pfn uint64, what string) {
	if len(c.examples) < maxExamples {
		c.examples = append(c.examples, fmt.Sprintf("%#x (%s)", pfn, what))
	}
}

// stream is the streamed dump.
type stream interface {
	ReadPage(pfn uint64, page []byte) (kdump.PageInfo, error)
}

// pages gives one page after the other, in any order; false at the end.
type pages func(page []byte) (pfn uint64, more bool, err error)

var zeroPage [kdump.PageSize]byte

// compare compares pages with the dump, for all page frames below maxPFN.
func compare(file string, next pages, dump stream, maxPFN uint64) (Comparison, error) {
	c := Comparison{File: file}
	seen := make([]bool, maxPFN)
	page, dumped := make([]byte, kdump.PageSize), make([]byte, kdump.PageSize)
	for {
		pfn, more, err := next(page)
		if err != nil {
			return c, fmt.Errorf("%s: %w", file, err)
		}
		if !more {
			break
		}
		zero := bytes.Equal(page, zeroPage[:])
		if pfn >= maxPFN {
			return c, fmt.Errorf("%s: page frame %#x is beyond the dump's last, %#x", file, pfn, maxPFN)
		}
		if seen[pfn] {
			continue // the kernel image comes twice, in the same bytes
		}
		seen[pfn] = true
		if !zero {
			c.Pages++
		}
		info, err := dump.ReadPage(pfn, dumped)
		switch {
		case errors.Is(err, kdump.ErrExcluded) || errors.Is(err, kdump.ErrNotRAM):
			if !zero {
				c.OnlyInFile++
				c.example(pfn, "not in the dump")
			}
		case err != nil:
			return c, err
		case bytes.Equal(page, dumped):
			c.Equal++
		case info.Flags&kdump.PageUncovered != 0:
			c.UncoveredDiffer++
		default:
			c.Mismatches++
			c.example(pfn, fmt.Sprintf("class %v, flags %d, differs", info.Class, info.Flags))
		}
	}
	for pfn, ok := range seen {
		if ok {
			continue
		}
		info, err := dump.ReadPage(uint64(pfn), dumped)
		switch {
		case errors.Is(err, kdump.ErrExcluded) || errors.Is(err, kdump.ErrNotRAM):
		case err != nil:
			return c, err
		case !bytes.Equal(dumped, zeroPage[:]):
			c.OnlyInDump++
			c.example(uint64(pfn), fmt.Sprintf("class %v, flags %d, not in the file", info.Class, info.Flags))
		}
	}
	return c, nil
}

// segment is a range of physical memory in an ELF core.
type segment struct {
	first, pages uint64
	offset       int64
}

// core is an ELF core with the program headers that the tools need.
type core struct {
	file     *os.File
	segments []segment
	notes    []byte
}

// openCore opens an ELF core and checks what readers of kernel dumps rely on.
func openCore(path string) (*core, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	c := &core{file: f}
	if err := c.readHeaders(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return c, nil
}

func (c *core) readHeaders() error {
	var header elf.Header64
	if err := binary.Read(io.NewSectionReader(c.file, 0, 64), binary.LittleEndian, &header); err != nil {
		return err
	}
	if header.Phoff != 64 {
		return fmt.Errorf("the program headers begin at %d: makedumpfile wants them at 64", header.Phoff)
	}
	e, err := elf.NewFile(c.file)
	if err != nil {
		return err
	}
	if e.Type != elf.ET_CORE || e.Machine != elf.EM_X86_64 || len(e.Progs) < 3 || e.Progs[0].Type != elf.PT_NOTE {
		return fmt.Errorf("an ELF file of type %v for %v with %d program headers", e.Type, e.Machine, len(e.Progs))
	}
	if c.notes, err = io.ReadAll(e.Progs[0].Open()); err != nil {
		return err
	}
	info, err := c.file.Stat()
	if err != nil {
		return err
	}
	end := uint64(0)
	for i, p := range e.Progs[1:] {
		if p.Type != elf.PT_LOAD || p.Align != 0 || p.Filesz != p.Memsz || p.Off%kdump.PageSize != 0 {
			return fmt.Errorf("program header %d: %+v", i+1, p.ProgHeader)
		}
		// The first is the kernel image, the others are the direct map.
		const imageBase = 0xffffffff80000000
		if (i == 0) != (p.Vaddr >= imageBase) {
			return fmt.Errorf("program header %d has the virtual address %#x", i+1, p.Vaddr)
		}
		end = max(end, p.Off+p.Filesz)
		if i > 0 {
			c.segments = append(c.segments, segment{p.Paddr / kdump.PageSize, p.Filesz / kdump.PageSize, int64(p.Off)})
		}
	}
	if end != uint64(info.Size()) {
		return fmt.Errorf("the segments end at %d, the file at %d", end, info.Size())
	}
	return nil
}

// pages reads all segments but the kernel image's, which shares its bytes with another.
func (c *core) pages() pages {
	i, at := 0, uint64(0)
	var in *bufio.Reader
	return func(page []byte) (uint64, bool, error) {
		for i < len(c.segments) && at == c.segments[i].pages {
			i, at, in = i+1, 0, nil
		}
		if i == len(c.segments) {
			return 0, false, nil
		}
		s := c.segments[i]
		if in == nil {
			in = bufio.NewReaderSize(io.NewSectionReader(c.file, s.offset, int64(s.pages)*kdump.PageSize), 1<<20)
		}
		_, err := io.ReadFull(in, page)
		at++
		return s.first + at - 1, true, err
	}
}

// records reads what pages.py has written.
func records(r io.Reader) pages {
	in := bufio.NewReaderSize(r, 1<<20)
	return func(page []byte) (uint64, bool, error) {
		var pfn uint64
		switch err := binary.Read(in, binary.LittleEndian, &pfn); {
		case errors.Is(err, io.EOF):
			return 0, false, nil
		case err != nil:
			return 0, false, err
		}
		_, err := io.ReadFull(in, page)
		return pfn, true, err
	}
}
