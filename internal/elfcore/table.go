// SPDX-License-Identifier: Apache-2.0

package elfcore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"

	"livedump.io/internal/kdump"
)

// readRecord checks what livedump says of the vmcore against the file.
func (c *Core) readRecord(size uint64) error {
	r := c.Record
	if r == nil {
		return nil
	}
	entries := r.Pages + r.Lost
	const most = maxPhys / kdump.PageSize
	switch {
	case r.Size > size:
		return fmt.Errorf("%w: the dump has %d bytes, the file only %d", kdump.ErrTruncated, r.Size, size)
	case r.DataOffset%kdump.PageSize != 0 || r.SumsOffset%kdump.PageSize != 0 || r.DataOffset > r.SumsOffset || r.SumsOffset > r.Size,
		r.Pages > most || r.Lost > most || entries*kdump.ELFEntryBytes > r.Size-r.SumsOffset:
		return fmt.Errorf("%w: pages at %d, their table at %d and the end at %d do not fit together", kdump.ErrDamaged,
			r.DataOffset, r.SumsOffset, r.Size)
	}
	c.maxPFN = (r.SumsOffset - r.DataOffset) / kdump.PageSize
	return nil
}

// Each calls f with what the table of livedump's vmcores has of each page, in order of page frames, lost pages included.
// data is nil for a lost page; it is valid until f returns.
func (c *Core) Each(f func(e kdump.ELFEntry, data []byte) error) error {
	r := c.Record
	if r == nil {
		return fmt.Errorf("%w of livedump: nothing is known of its pages", kdump.ErrNotDump)
	}
	return guarded(func() error {
		next := uint64(0)
		for i := range r.Pages + r.Lost {
			e := kdump.DecodeELFEntry(c.mem[r.SumsOffset+i*kdump.ELFEntryBytes:][:kdump.ELFEntryBytes])
			if e.PFN < next || e.PFN >= c.maxPFN {
				return fmt.Errorf("%w: entry %d of the table of pages is of page frame %#x", kdump.ErrDamaged, i, e.PFN)
			}
			next = e.PFN + 1
			data := c.mem[r.DataOffset+e.PFN*kdump.PageSize:][:kdump.PageSize]
			if e.Info.Flags&kdump.PageLost != 0 {
				data = nil
			}
			if err := f(e, data); err != nil {
				return err
			}
		}
		return nil
	})
}

// EachRef is EachPage for livedump's vmcores: pages come with what is known of them, and lost ones as such.
func (c *Core) EachRef(ctx context.Context, workers int, f func([]kdump.PageRef, []byte) error) error {
	type work struct {
		refs []kdump.PageRef
		data []byte
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan work)
	free := make(chan work, workers+1)
	for range workers + 1 {
		free <- work{make([]kdump.PageRef, 0, BatchPages), make([]byte, 0, BatchPages*kdump.PageSize)}
	}
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for b := range batches {
				if ctx.Err() == nil {
					if err := f(b.refs, b.data); err != nil {
						cancel(err)
					}
				}
				free <- work{b.refs[:0], b.data[:0]}
			}
		})
	}
	b := <-free
	give := func() error {
		select {
		case batches <- b:
			b = <-free
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := c.Each(func(e kdump.ELFEntry, data []byte) error {
		b.refs = append(b.refs, kdump.PageRef{PFN: e.PFN, Class: e.Info.Class, Flags: e.Info.Flags})
		if data == nil {
			data = zeroPage[:]
		}
		b.data = append(b.data, data...)
		if len(b.refs) < BatchPages {
			return nil
		}
		return give()
	})
	if err == nil && len(b.refs) > 0 {
		err = give()
	}
	close(batches)
	running.Wait()
	return cmp.Or(err, context.Cause(ctx))
}

var (
	zeroPage   [kdump.PageSize]byte
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// CountRefs counts the pages that keep wants. Lost pages are not asked for.
func (c *Core) CountRefs(keep func(class kdump.Class, zero bool) bool) (n uint64, err error) {
	zero := crc32.Checksum(zeroPage[:], castagnoli)
	err = c.Each(func(e kdump.ELFEntry, data []byte) error {
		if data != nil && keep(e.Info.Class, e.Info.CRC == zero && bytes.Equal(data, zeroPage[:])) {
			n++
		}
		return nil
	})
	return n, err
}

// LostPages lists the pages that are not in livedump's vmcore because their content could not be kept.
func (c *Core) LostPages() (lost []kdump.PFNRange, err error) {
	err = c.Each(func(e kdump.ELFEntry, data []byte) error {
		if data != nil {
			return nil
		}
		if n := len(lost); n > 0 && lost[n-1].End == e.PFN {
			lost[n-1].End++
		} else {
			lost = append(lost, kdump.PFNRange{Start: e.PFN, End: e.PFN + 1})
		}
		return nil
	})
	return lost, err
}

// Verify compares the table of livedump's vmcore with its checksum and every page with its CRC. What is wrong is in the
// report, an error means that it could not be checked.
func (c *Core) Verify(ctx context.Context) (kdump.Report, error) {
	rec := c.Record
	if rec == nil {
		return kdump.Report{}, fmt.Errorf("%w of livedump: there are no checksums to verify", kdump.ErrNotDump)
	}
	r := kdump.Report{Bytes: rec.Size, Pages: rec.Pages, Lost: rec.Lost}
	problem := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	whole := sha256.New()
	const piece = 1 << 20
	err := guarded(func() error {
		for off := uint64(0); off < rec.Size; off += piece {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			whole.Write(c.mem[off:min(off+piece, rec.Size)])
		}
		if sha256.Sum256(c.mem[rec.SumsOffset:rec.Size]) != rec.Root {
			problem("the table of pages does not match its checksum")
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	r.SHA256 = fmt.Sprintf("%x", whole.Sum(nil))
	var lost, uncovered uint64
	err = c.Each(func(e kdump.ELFEntry, data []byte) error {
		if data == nil {
			lost++
			return nil
		}
		if e.Info.Flags&kdump.PageUncovered != 0 {
			uncovered++
		}
		if crc32.Checksum(data, castagnoli) != e.Info.CRC {
			r.DamagedPageCount++
			if len(r.DamagedPages) < kdump.MaxListedPages {
				r.DamagedPages = append(r.DamagedPages, kdump.DamagedPage{PFN: e.PFN, Problem: "the content does not match its CRC"})
			}
		}
		return context.Cause(ctx)
	})
	if errors.Is(err, kdump.ErrDamaged) {
		problem("%v", err)
	} else if err != nil {
		return r, err
	}
	if lost != rec.Lost || uncovered != rec.Uncovered {
		problem("%d pages are lost and %d uncovered, the record says %d and %d", lost, uncovered, rec.Lost, rec.Uncovered)
	}
	if len(c.segments) == 0 && rec.Pages > 0 || !c.covers() {
		problem("the program headers do not have all pages")
	}
	r.OK = len(r.Problems) == 0 && r.DamagedPageCount == 0
	return r, nil
}

// covers says whether the program headers lead to every page that the table has, at its place.
func (c *Core) covers() bool {
	ok := true
	_ = c.Each(func(e kdump.ELFEntry, data []byte) error { // an error was reported already
		if data == nil {
			return nil
		}
		i, found := slices.BinarySearchFunc(c.segments, e.PFN, compareSegment)
		if !found || c.segments[i].offset+(e.PFN-c.segments[i].Start)*kdump.PageSize != c.Record.DataOffset+e.PFN*kdump.PageSize {
			ok = false
		}
		return nil
	})
	return ok
}
