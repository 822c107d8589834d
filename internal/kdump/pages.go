// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Meta is what the dump says besides its pages, as a Writer takes it. The pages are those in the dump
// and the lost ones.
func (d *Reader) Meta() (Meta, error) {
	m := Meta{
		Utsname: d.hdr.uts, MaxPFN: d.MaxPFN(), Pages: d.pages, NrCPUs: len(CPUs(d.parsed)), DumpLevel: int(d.sub.dumpLevel),
		Notes: slices.Clone(d.notes), FrozenAt: time.Unix(d.hdr.seconds, d.hdr.microseconds*1000),
	}
	for _, n := range d.parsed {
		if n.Name == "VMCOREINFO" {
			m.VMCoreInfoOffset = uint64(bytes.Index(d.notes, n.Desc))
			m.VMCoreInfoBytes = uint64(len(n.Desc))
		}
	}
	inRange := false
	for i, b := range d.ram {
		if b == 0 && !inRange || b == 0xff && inRange {
			continue
		}
		for bit := range uint64(8) {
			if set := b>>bit&1 != 0; set != inRange {
				pfn := uint64(i)*8 + bit
				if set {
					m.RAM = append(m.RAM, PFNRange{pfn, m.MaxPFN})
				} else {
					m.RAM[len(m.RAM)-1].End = pfn
				}
				inRange = set
			}
		}
	}
	if r := d.rec; r != nil {
		m.Session, m.FrozenAt, m.Stop, m.ClassPages = r.Session, r.FrozenAt, r.Stop, r.ClassPages
		m.Pages += r.Lost
	}
	return m, nil
}

// EachPage calls f with all pages and their contents, some at a time, in no order, from as many
// goroutines as there are workers; lost pages come as such. f must not keep the slices. A page that
// cannot be read ends it with a *PageError.
func (d *Reader) EachPage(ctx context.Context, workers int, f func([]PageRef, []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan []pageAt)
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			refs, data := make([]PageRef, eachBatch), make([]byte, eachBatch*PageSize)
			for pages := range batches {
				if ctx.Err() != nil {
					continue
				}
				err := d.readBatch(pages, refs, data)
				if err == nil {
					err = f(refs[:len(pages)], data[:len(pages)*PageSize])
				}
				if err != nil {
					cancel(err)
				}
			}
		})
	}
	err := d.eachPage(eachBatch, func(pages []pageAt) error {
		select {
		case batches <- slices.Clone(pages):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(batches)
	running.Wait()
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	return d.eachLost(f)
}

const eachBatch = 256

func (d *Reader) readBatch(pages []pageAt, refs []PageRef, data []byte) error {
	var src [PageSize]byte
	for i, p := range pages {
		err := d.checkDesc(&p.desc)
		if err == nil {
			err = d.readAt(src[:p.desc.size], int64(p.desc.offset), "page data")
		}
		if err == nil {
			err = d.decode(data[i*PageSize:][:PageSize], src[:p.desc.size], &p.desc)
		}
		if err != nil {
			return &PageError{p.pfn, err}
		}
		refs[i] = PageRef{PFN: p.pfn}
		if d.rec != nil {
			info := decodePageInfo(p.desc.pageFlags)
			refs[i].Class, refs[i].Flags = info.Class, info.Flags
		}
	}
	return nil
}

func (d *Reader) eachLost(f func([]PageRef, []byte) error) error {
	ranges, err := d.LostPages()
	if err != nil {
		return err
	}
	for _, r := range ranges {
		for pfn := r.Start; pfn < r.End; pfn++ {
			if err := f([]PageRef{{PFN: pfn, Flags: PageLost}}, zeroPage[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// CountPages counts the pages that keep wants, by their class and by whether they are full of zeros,
// without reading them. Lost pages are not asked for.
func (d *Reader) CountPages(keep func(c Class, zero bool) bool) (n uint64, err error) {
	if d.rec == nil {
		return 0, fmt.Errorf("%w of livedump: its pages have no classes", ErrNotDump)
	}
	err = d.eachPage(verifyBatch, func(pages []pageAt) error {
		for _, p := range pages {
			if keep(decodePageInfo(p.desc.pageFlags).Class, p.desc.offset == d.rec.DataOffset) {
				n++
			}
		}
		return nil
	})
	return n, err
}
