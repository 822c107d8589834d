// SPDX-License-Identifier: Apache-2.0

// Package elfcore reads ELF vmcores of x86-64 kernels: what /proc/vmcore is, what makedumpfile -E and
// QEMU's dump-guest-memory write.
package elfcore

import (
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"livedump.io/internal/kdump"
)

// ErrNotCore: this is no ELF vmcore that the package reads.
var ErrNotCore = errors.New("not an ELF vmcore")

// Core is an ELF vmcore in a file. Its methods may be called from several goroutines.
type Core struct {
	f        *os.File
	mem      []byte
	segments []segment // of memory that is there, in order of page frames, without overlap
	ram      []kdump.PFNRange
	maxPFN   uint64

	// Notes are those of the kernel, without livedump's own.
	Notes []byte
	// Record is what livedump itself says of the vmcore; nil if another program wrote it.
	Record *kdump.Record
	// DumpLevel is only known with a Record.
	DumpLevel        int
	VMCoreInfoOffset uint64
	VMCoreInfoBytes  uint64
	NrCPUs           int
}

// segment is page frames that lie side by side in the file.
type segment struct {
	kdump.PFNRange
	offset uint64
}

const (
	noteHeaderBytes = 12

	maxPhys  = 1 << 46 // bytes
	maxNotes = 64 << 20
)

// Open opens a vmcore.
func Open(path string) (*Core, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the vmcore: %w", err)
	}
	c := &Core{f: f}
	if err := c.read(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Join(err, c.Close()))
	}
	return c, nil
}

// Close ends the use of the Core.
func (c *Core) Close() error {
	var err error
	if c.mem != nil {
		err = unix.Munmap(c.mem)
		c.mem = nil
	}
	return errors.Join(err, c.f.Close())
}

func (c *Core) read() error {
	st, err := c.f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file", ErrNotCore)
	}
	size := uint64(st.Size())
	e, err := elf.NewFile(c.f)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotCore, err)
	}
	if e.Type != elf.ET_CORE || e.Machine != elf.EM_X86_64 || e.Class != elf.ELFCLASS64 {
		return fmt.Errorf("%w: an ELF file of type %v for %v", ErrNotCore, e.Type, e.Machine)
	}
	for _, p := range e.Progs {
		if p.Off > size || p.Filesz > size-p.Off {
			return fmt.Errorf("%w: a segment of %d bytes at %d ends after the file", kdump.ErrTruncated, p.Filesz, p.Off)
		}
		switch p.Type {
		case elf.PT_NOTE:
			if p.Filesz > maxNotes-uint64(len(c.Notes)) {
				return fmt.Errorf("%w: %d bytes of notes", ErrNotCore, p.Filesz)
			}
			notes, err := io.ReadAll(p.Open())
			if err != nil {
				return fmt.Errorf("reading the notes: %w", err)
			}
			c.Notes = append(c.Notes, notes...)
		case elf.PT_LOAD:
			if p.Paddr > maxPhys || p.Memsz > maxPhys-p.Paddr || p.Filesz > p.Memsz {
				return fmt.Errorf("%w: a segment of %d bytes at %#x of physical memory", ErrNotCore, p.Memsz, p.Paddr)
			}
			c.add(p)
		}
	}
	if c.maxPFN == 0 {
		return fmt.Errorf("%w: it has no memory", ErrNotCore)
	}
	if err := c.order(); err != nil {
		return err
	}
	if err := c.readNotes(); err != nil {
		return err
	}
	c.mem, err = unix.Mmap(int(c.f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping the vmcore: %w", err)
	}
	return c.readRecord(size)
}

// add takes the whole pages of a segment. What is not in the file is memory that was left out.
func (c *Core) add(p *elf.Prog) {
	first := (p.Paddr + kdump.PageSize - 1) / kdump.PageSize
	skip := first*kdump.PageSize - p.Paddr
	end := (p.Paddr + p.Memsz) / kdump.PageSize
	if first < end {
		c.ram = append(c.ram, kdump.PFNRange{Start: first, End: end})
		c.maxPFN = max(c.maxPFN, end)
	}
	if end = (p.Paddr + p.Filesz) / kdump.PageSize; first < end && p.Filesz > skip {
		c.segments = append(c.segments, segment{kdump.PFNRange{Start: first, End: end}, p.Off + skip})
	}
}

// order sorts the segments. Those of the kernel's own text are in other segments as well.
func (c *Core) order() error {
	slices.SortFunc(c.segments, func(a, b segment) int { return cmp.Compare(a.Start, b.Start) })
	kept := c.segments[:0]
	for _, s := range c.segments {
		if n := len(kept); n > 0 && s.Start < kept[n-1].End {
			have := kept[n-1].End
			if s.End <= have {
				continue
			}
			s.offset += (have - s.Start) * kdump.PageSize
			s.Start = have
		}
		kept = append(kept, s)
	}
	c.segments = kept
	return nil
}

func (c *Core) readNotes() error {
	notes, err := kdump.ParseNotes(c.Notes)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotCore, err)
	}
	for _, n := range notes {
		switch n.Name {
		case kdump.ELFNoteName:
			rec, level, err := kdump.DecodeELFNote(n.Desc)
			if err != nil {
				return err
			}
			c.Record, c.DumpLevel = &rec, level
		case "CORE":
			if n.Type == 1 { // NT_PRSTATUS
				c.NrCPUs++
			}
		case "VMCOREINFO":
			c.VMCoreInfoOffset = uint64(bytes.Index(c.Notes, n.Desc))
			c.VMCoreInfoBytes = uint64(len(n.Desc))
		}
	}
	if c.Record != nil {
		// It comes last.
		c.Notes = c.Notes[:bytes.LastIndex(c.Notes, append([]byte(kdump.ELFNoteName), 0))-noteHeaderBytes]
	}
	return nil
}

// VMCoreInfo is what the kernel says of itself; nil if the vmcore does not have it.
func (c *Core) VMCoreInfo() kdump.VMCoreInfo {
	if c.VMCoreInfoBytes == 0 {
		return nil
	}
	return kdump.ParseVMCoreInfo(c.Notes[c.VMCoreInfoOffset:][:c.VMCoreInfoBytes])
}

// RAM is where there is memory, whether it is in the file or not.
func (c *Core) RAM() []kdump.PFNRange { return slices.Clone(c.ram) }

// MaxPFN is one more than the last page frame.
func (c *Core) MaxPFN() uint64 { return c.maxPFN }

// Pages is the number of pages in the file.
func (c *Core) Pages() (n uint64) {
	for _, s := range c.segments {
		n += s.End - s.Start
	}
	return n
}

// ReadPage reads a page into b. Errors: kdump.ErrExcluded, or of reading.
func (c *Core) ReadPage(pfn uint64, b []byte) error {
	i, found := slices.BinarySearchFunc(c.segments, pfn, compareSegment)
	if !found {
		return fmt.Errorf("page frame %#x: %w", pfn, kdump.ErrExcluded)
	}
	s := c.segments[i]
	n, err := c.f.ReadAt(b[:kdump.PageSize], int64(s.offset+(pfn-s.Start)*kdump.PageSize))
	if n < kdump.PageSize {
		return fmt.Errorf("page frame %#x: %w", pfn, err)
	}
	return nil
}

func compareSegment(s segment, pfn uint64) int {
	switch {
	case pfn < s.Start:
		return 1
	case pfn >= s.End:
		return -1
	}
	return 0
}

// BatchPages is how many pages EachPage gives at a time, at most: so few that they stay in a processor's own cache until all
// is done with them.
const BatchPages = 64

// EachPage calls f with all pages, some at a time, from as many goroutines as there are workers. The
// pages are only valid, and must not be changed, until f returns.
//
// They are read and not mapped: as fast, what cannot be read is an error and no fault, and memory stays bounded.
func (c *Core) EachPage(ctx context.Context, workers int, f func(first uint64, data []byte) error) error {
	// A batch is found by its number: the segments' batches one after the other.
	var starts []uint64
	total := uint64(0)
	for _, s := range c.segments {
		starts = append(starts, total)
		total += (s.End - s.Start + BatchPages - 1) / BatchPages
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Uint64
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			room, free, err := kdump.NewBuffer(BatchPages * kdump.PageSize)
			if err != nil {
				cancel(err)
				return
			}
			defer free()
			for ctx.Err() == nil {
				n := next.Add(1) - 1
				if n >= total {
					return
				}
				i, found := slices.BinarySearch(starts, n)
				if !found {
					i--
				}
				s := c.segments[i]
				first := s.Start + (n-starts[i])*BatchPages
				data := room[:min(BatchPages, s.End-first)*kdump.PageSize]
				if err := c.readAt(data, s.offset+(first-s.Start)*kdump.PageSize); err != nil {
					cancel(err)
				} else if err := f(first, data); err != nil {
					cancel(err)
				}
			}
		})
	}
	running.Wait()
	return context.Cause(ctx)
}

// readAt reads what was there when the vmcore was opened.
func (c *Core) readAt(b []byte, offset uint64) error {
	n, err := c.f.ReadAt(b, int64(offset))
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: was it changed meanwhile?", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("reading %d bytes at %d of the vmcore: %w", len(b), offset, err)
}

// guarded makes an error of the fault that comes when the file is cut, or its device fails, while it is
// mapped.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			fault, ok := r.(interface{ Addr() uintptr })
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("reading the vmcore failed at address %#x of its mapping: was it changed meanwhile?", fault.Addr())
		}
	}()
	return f()
}
