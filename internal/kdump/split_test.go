// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// splitOn begins a dump of pages that are not lost in as many parts as there are devices.
func splitOn(t *testing.T, maxPFN uint64, devs []*memDevice, opts Options) (s *SplitWriter, pfns, lost []uint64, err error) {
	t.Helper()
	for pfn := uint64(2); pfn < maxPFN; pfn += 3 {
		if pfn%10 == 0 {
			lost = append(lost, pfn)
		} else {
			pfns = append(pfns, pfn)
		}
	}
	outs := make([]Output, len(devs))
	for i, d := range devs {
		outs[i] = d
	}
	s, err = NewSplitWriter(outs, testMeta(maxPFN, uint64(len(pfns)+len(lost)), 3), opts)
	return s, pfns, lost, err
}

// giveSplit gives all pages in no order from several goroutines.
func giveSplit(s *SplitWriter, pfns, lost []uint64) error {
	order := slices.Clone(pfns)
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	errs := make([]error, 4)
	var givers sync.WaitGroup
	for g := range errs {
		givers.Go(func() {
			mine := order[g*len(order)/len(errs) : (g+1)*len(order)/len(errs)]
			for len(mine) > 0 && errs[g] == nil {
				var refs []PageRef
				var data []byte
				for _, pfn := range mine[:min(37, len(mine))] {
					refs, data = append(refs, testRef(pfn)), append(data, testPage(pfn)...)
				}
				mine = mine[len(refs):]
				errs[g] = s.Add(refs, data)
			}
		})
	}
	givers.Wait()
	for _, pfn := range lost {
		errs = append(errs, s.Add([]PageRef{{PFN: pfn, Flags: PageLost}}, zeroPage[:]))
	}
	return errors.Join(errs...)
}

func splitDevices(t *testing.T, sizes ...int) []*memDevice {
	var devs []*memDevice
	for _, size := range sizes {
		devs = append(devs, newMemDevice(t, size<<20))
	}
	return devs
}

// TestSplit has parts that together hold every page, each where its range says.
func TestSplit(t *testing.T) {
	for name, c := range map[string]struct {
		sizes []int
		opts  Options
	}{
		"two":                    {[]int{16, 16}, Options{}},
		"one much smaller":       {[]int{3, 64}, Options{Codec: CodecNone, ChunkBytes: 4 * PageSize}},
		"five, and index spills": {[]int{16, 8, 16, 16, 12}, Options{ChunkBytes: PageSize, IndexPages: 500}},
	} {
		t.Run(name, func(t *testing.T) {
			const maxPFN = 6001
			devs := splitDevices(t, c.sizes...)
			s, pfns, lost, err := splitOn(t, maxPFN, devs, c.opts)
			if err != nil {
				t.Fatal(err)
			}
			if err := giveSplit(s, pfns, lost); err != nil {
				t.Fatal(err)
			}
			if p := s.Progress(); p.PagesDone != p.Pages || p.Pages != uint64(len(pfns)+len(lost)) {
				t.Errorf("progress %+v, want all of %d pages", p, len(pfns)+len(lost))
			}
			sum, err := s.Finish(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if sum.Pages != uint64(len(pfns)) || sum.Lost != uint64(len(lost)) || len(sum.Parts) != len(devs) {
				t.Fatalf("summary %+v, want %d pages, %d lost, %d parts", sum, len(pfns), len(lost), len(devs))
			}
			var parts []*Reader
			next := uint64(0)
			for i, d := range devs {
				rep := verifyBytes(d.durable)
				if !rep.OK {
					t.Fatalf("part %d: %+v", i, rep)
				}
				r, err := NewReader(bytes.NewReader(d.durable), int64(len(d.durable)))
				if err != nil {
					t.Fatal(err)
				}
				part, is := r.Part()
				if !is || part.Start != next || i > 0 && !r.SameDump(parts[0]) || r.Pages() != sum.Parts[i].Pages {
					t.Fatalf("part %d: %+v (%v) with %d pages, want it from %d on with %d", i, part, is, r.Pages(), next, sum.Parts[i].Pages)
				}
				if part.Start%partStep != 0 {
					t.Errorf("part %d begins at %d, in the middle of a word of the bitmap", i, part.Start)
				}
				if part.End-part.Start > maxPFN*9/10 {
					t.Errorf("part %d has %d of %d page frames", i, part.End-part.Start, maxPFN)
				}
				next = part.End
				parts = append(parts, r)
			}
			if next != maxPFN {
				t.Errorf("the last part ends at %d of %d", next, maxPFN)
			}
			got := make([]byte, PageSize)
			for _, pfn := range pfns {
				for i, r := range parts {
					part, _ := r.Part()
					info, err := r.ReadPage(pfn, got)
					switch inside := pfn >= part.Start && pfn < part.End; {
					case !inside && !errors.Is(err, ErrExcluded):
						t.Fatalf("page %d, which is not in part %d: %v", pfn, i, err)
					case inside && (err != nil || !bytes.Equal(got, testPage(pfn)) || info.Class != testRef(pfn).Class):
						t.Fatalf("page %d in part %d: %v, or other content", pfn, i, err)
					}
				}
			}
			var listed []uint64
			for _, r := range parts {
				ranges, err := r.LostPages()
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range ranges {
					for pfn := l.Start; pfn < l.End; pfn++ {
						listed = append(listed, pfn)
					}
				}
			}
			if !slices.Equal(listed, lost) {
				t.Errorf("lost pages %v are listed, want %v", listed, lost)
			}
		})
	}
}

// TestSplitFails: whatever goes wrong with one part, none is a dump.
func TestSplitFails(t *testing.T) {
	const maxPFN = 3001
	for name, c := range map[string]struct {
		spoil func(devs []*memDevice)
		abort bool
		short bool // a page is missing
		want  error
	}{
		"aborted":                 {abort: true, want: ErrAborted},
		"a page is missing":       {short: true, want: ErrPagesMissing},
		"an I/O error":            {spoil: func(d []*memDevice) { d[1].failWrite, d[1].failErr = 3, unix.EIO }, want: unix.EIO},
		"what is read back":       {spoil: func(d []*memDevice) { d[2].failRead = 2*PageSize + 17 }, want: ErrReadBack},
		"the header of the last":  {spoil: func(d []*memDevice) { failHeader(d[2]) }, want: unix.EIO},
		"the header of the first": {spoil: func(d []*memDevice) { failHeader(d[0]) }, want: unix.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			devs := splitDevices(t, 16, 16, 16)
			if c.spoil != nil {
				c.spoil(devs)
			}
			s, pfns, lost, err := splitOn(t, maxPFN, devs, Options{ChunkBytes: 8 * PageSize})
			if err != nil {
				t.Fatal(err)
			}
			if c.short {
				pfns = pfns[1:]
			}
			err = giveSplit(s, pfns, lost)
			if c.abort {
				err = ErrAborted
			} else if err == nil {
				_, err = s.Finish(context.Background())
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			for _, d := range devs {
				d.failWrite, d.onWrite = 0, nil
			}
			if err := s.Abort(err); err != nil {
				t.Fatal(err)
			}
			for _, d := range devs {
				if err := d.Sync(); err != nil {
					t.Fatal(err)
				}
				checkFailed(t, d, c.want.Error())
			}
			if _, err := s.Finish(context.Background()); err == nil {
				t.Error("it can be finished after all")
			}
		})
	}
}

// failHeader has the second write of block 0 fail: the first is the mark.
func failHeader(d *memDevice) {
	n := 0
	d.failErr = unix.EIO
	d.onWrite = func(off int64) {
		if off == 0 {
			if n++; n == 2 {
				d.failWrite = d.writes
			}
		}
	}
}

// TestSplitTooSmall: nothing is touched if one of the targets cannot hold its part.
func TestSplitTooSmall(t *testing.T) {
	devs := []*memDevice{newMemDevice(t, 16<<20), newMemDevice(t, 2*PageSize)}
	_, _, _, err := splitOn(t, 3001, devs, Options{})
	if !errors.Is(err, ErrTargetTooSmall) {
		t.Fatalf("error %v, want ErrTargetTooSmall", err)
	}
	for i, d := range devs {
		if d.writes > 0 {
			t.Errorf("target %d was written to", i)
		}
	}
	if _, _, _, err := splitOn(t, 3001, devs[:1], Options{}); err == nil {
		t.Error("a dump is split among one target")
	}
}

// TestSplitRAM: whatever room the targets have, each part has page frames and begins with a word of the bitmap.
func TestSplitRAM(t *testing.T) {
	for _, maxPFN := range []uint64{3*partStep + 1, 4 * partStep, 4*partStep + 1, 6001} {
		for _, sizes := range [][]int{{16, 16, 16, 16}, {1, 1, 1, 64}, {64, 1, 1, 1}, {1, 64, 1, 1}} {
			var outs []Output
			for _, d := range splitDevices(t, sizes...) {
				outs = append(outs, d)
			}
			meta := testMeta(maxPFN, 10, 3)
			ranges, err := splitRAM(outs, &meta)
			if err != nil {
				t.Fatal(err)
			}
			next := uint64(0)
			for i, r := range ranges {
				if r.Start != next || r.End <= r.Start || r.Start%partStep != 0 {
					t.Errorf("%d page frames on %v MiB: part %d is %+v", maxPFN, sizes, i, r)
				}
				next = r.End
			}
			if next != maxPFN {
				t.Errorf("%d page frames on %v MiB: the last part ends at %d", maxPFN, sizes, next)
			}
			few := testMeta(3*partStep, 10, 3)
			if _, err := splitRAM(outs, &few); err == nil {
				t.Errorf("%d page frames are split among %d targets", few.MaxPFN, len(outs))
			}
		}
	}
}
