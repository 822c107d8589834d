// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
)

// simulation writes the dump of a made-up node: its kernel pages are spread over all of its memory as
// on a node that has been up for long, they come as from a session: copies first, in no order, and then
// the sweep, a batch at a time from each reader.
type simulation struct {
	ramGiB, kernelGiB int
	compression       string
	dir               string // for the dump, on a disk
}

const (
	copyPages  = 1 << 17 // a power of two
	sweepBatch = 256
)

// child is the whole of a process that only simulates, so that its size is that of the writer.
func (s simulation) child() error {
	maxPFN := uint64(s.ramGiB) << 18
	pages := uint64(s.kernelGiB) << 18
	every := maxPFN / pages
	meta := simulatedMeta(maxPFN, pages)
	size, err := kdump.MaxSize(maxPFN, pages, len(meta.Notes))
	if err != nil {
		return err
	}
	out, err := target.CreateFile(filepath.Join(s.dir, "simulated"), target.FileOptions{Room: size})
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	codec, err := kdump.ParseCodec(s.compression)
	if err != nil {
		return err
	}
	w, err := kdump.NewWriter(out, meta, kdump.Options{Codec: codec, Workers: 2})
	if err != nil {
		return err
	}
	if err := s.give(w, pages, every); err != nil {
		return errors.Join(err, w.Abort(err))
	}
	sum, err := w.Finish(context.Background())
	if err != nil {
		return errors.Join(err, w.Abort(err))
	}
	peak, err := peakRSS("/proc/self/status")
	fmt.Printf("%d %d\n", sum.Bytes, peak)
	return err
}

// give adds every page once: page frame i*every for each i.
func (s simulation) give(w *kdump.Writer, pages, every uint64) error {
	contents := simulatedPages()
	// The copies: a permutation by multiplication with an odd number, as many pages as are a power of two.
	copies := uint64(copyPages) // fewer than a GiB has pages
	stride := pages / copies
	var next atomic.Uint64
	var running sync.WaitGroup
	errs := make([]error, 2)
	for r := range errs {
		running.Go(func() {
			refs := make([]kdump.PageRef, 0, sweepBatch)
			data := make([]byte, sweepBatch*kdump.PageSize)
			flush := func() bool {
				errs[r] = w.Add(refs, data[:len(refs)*kdump.PageSize])
				refs = refs[:0]
				return errs[r] == nil
			}
			put := func(i uint64, flags kdump.PageFlags) {
				page := data[len(refs)*kdump.PageSize:][:kdump.PageSize]
				copy(page, contents[(i*2654435761>>7)%uint64(len(contents))])
				if page[0] != 0 { // pages are alike, but not the same
					binary.LittleEndian.PutUint64(page, i)
				}
				refs = append(refs, kdump.PageRef{PFN: i * every, Class: kdump.ClassKernel, Flags: flags})
			}
			// Every stride-th page was copied; these come first.
			for {
				n := next.Add(sweepBatch) - sweepBatch
				if n < copies { // a multiple of the batch
					for k := n; k < n+sweepBatch; k++ {
						put(k*0x9e3779b1%copies*stride, kdump.PageCopy)
					}
				} else {
					if n -= copies; n >= pages {
						return
					}
					for i := n; i < min(pages, n+sweepBatch); i++ {
						if i%stride != 0 || i/stride >= copies {
							put(i, 0)
						}
					}
				}
				if !flush() {
					return
				}
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// simulatedPages are what kernel pages are like: zeros, pointers, counters, text, and some that do not
// compress. Those that are not zero begin with a byte that is not.
func simulatedPages() [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	var pages [][]byte
	for i := range 512 {
		b := make([]byte, kdump.PageSize)
		switch {
		case i%16 < 5: // 30 % zeros
		case i%16 < 11: // slabs: pointers and small numbers
			for off := 0; off < len(b); off += 8 {
				switch rng.IntN(4) {
				case 0:
					binary.LittleEndian.PutUint64(b[off:], 0xffff888000000000+rng.Uint64N(1<<34)&^63)
				case 1:
					binary.LittleEndian.PutUint64(b[off:], rng.Uint64N(1000))
				}
			}
			b[0] = 1
		case i%16 < 15: // text and tables
			for off := 0; off < len(b); {
				off += copy(b[off:], fmt.Sprintf("%s=%d;", []string{"inode", "dentry", "state", "count"}[rng.IntN(4)], rng.IntN(1e6)))
			}
		default:
			for off := 0; off < len(b); off += 8 {
				binary.LittleEndian.PutUint64(b[off:], rng.Uint64())
			}
			b[0] = 1
		}
		pages = append(pages, b)
	}
	return pages
}

func simulatedMeta(maxPFN, pages uint64) kdump.Meta {
	const info = "OSRELEASE=6.1.0-simulated\nPAGESIZE=4096\nNUMBER(phys_base)=0\n"
	m := kdump.Meta{
		Utsname: kdump.Utsname{Sysname: "Linux", Nodename: "simulated", Release: "6.1.0-simulated", Version: "#1", Machine: "x86_64"},
		MaxPFN:  maxPFN, Pages: pages, RAM: []kdump.PFNRange{{Start: 0, End: maxPFN}}, NrCPUs: 256, DumpLevel: 31, FrozenAt: time.Now(),
	}
	le := binary.LittleEndian
	add := func(name string, typ uint32, desc []byte) int {
		m.Notes = le.AppendUint32(m.Notes, uint32(len(name)+1))
		m.Notes = le.AppendUint32(m.Notes, uint32(len(desc)))
		m.Notes = le.AppendUint32(m.Notes, typ)
		m.Notes = append(append(m.Notes, name...), make([]byte, 4-len(name)%4)...)
		at := len(m.Notes)
		m.Notes = append(append(m.Notes, desc...), make([]byte, -len(desc)&3)...)
		return at
	}
	for cpu := range m.NrCPUs {
		desc := make([]byte, 336)
		le.PutUint32(desc[32:], uint32(cpu+1))
		add("CORE", 1, desc)
	}
	m.VMCoreInfoOffset = uint64(add("VMCOREINFO", 0, []byte(info)))
	m.VMCoreInfoBytes = uint64(len(info))
	return m
}

// peakRSS is the largest resident size so far, from a status file of /proc, in KiB. The kernel keeps it,
// so that no sample can miss it.
func peakRSS(status string) (int, error) {
	b, err := os.ReadFile(status)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if rest, ok := strings.CutPrefix(string(line), "VmHWM:"); ok {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return 0, fmt.Errorf("%s has no VmHWM", status)
}
