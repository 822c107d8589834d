// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// VerifyOptions of Verify. The zero value is good.
type VerifyOptions struct {
	// Workers read and check at once. 0: GOMAXPROCS.
	Workers int
	// Progress is called now and then, from one goroutine at a time, with the bytes and pages checked
	// so far.
	Progress func(VerifyProgress)
}

// VerifyProgress is how far Verify has come: first all bytes, then all pages.
type VerifyProgress struct {
	Bytes, BytesTotal uint64
	Pages, PagesTotal uint64
}

// Report is what Verify found.
type Report struct {
	OK     bool   `json:"ok"`
	Bytes  uint64 `json:"bytes"`
	SHA256 string `json:"sha256"` // of the dump's bytes, as sha256sum has it
	Pages  uint64 `json:"pages"`
	Lost   uint64 `json:"lost"`

	// Problems of the structure, in words.
	Problems []string `json:"problems,omitempty"`
	// DamagedChunks are the pieces of the file whose checksum does not match.
	DamagedChunks []ByteRange `json:"damagedChunks,omitempty"`
	// DamagedPageCount pages cannot be trusted. DamagedPages lists them in order, but not more than
	// MaxListedPages.
	DamagedPageCount uint64        `json:"damagedPageCount"`
	DamagedPages     []DamagedPage `json:"damagedPages,omitempty"`
}

// MaxListedPages bounds Report.DamagedPages.
const MaxListedPages = 10000

// ByteRange is a part of the file, [Start, End).
type ByteRange struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
}

// DamagedPage is a page that does not have the content it had when it was dumped.
type DamagedPage struct {
	PFN     uint64 `json:"pfn"`
	Problem string `json:"problem"`
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// Verify checks every byte of a dump against its checksums, every descriptor, and every page against
// its CRC. What is wrong with the dump is in the report; an error means that it could not be checked:
// ErrNotDump if livedump did not write it, the cause of ctx, or of memory.
func (d *Reader) Verify(ctx context.Context, opts VerifyOptions) (Report, error) {
	if d.rec == nil {
		return Report{}, fmt.Errorf("%w of livedump: there are no checksums to verify", ErrNotDump)
	}
	if opts.Workers == 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	v := &verification{d: d, opts: opts, report: Report{Bytes: d.rec.Size, Pages: d.pages, Lost: d.rec.Lost}}
	if err := v.bytes(ctx); err != nil {
		return Report{}, err
	}
	if err := v.pages(ctx); err != nil {
		return Report{}, err
	}
	r := &v.report
	if v.zeros != d.rec.ZeroPages {
		r.problem("%d zero pages, the record says %d", v.zeros, d.rec.ZeroPages)
	}
	if v.uncovered != d.rec.Uncovered {
		r.problem("%d pages are marked as uncovered, the record says %d", v.uncovered, d.rec.Uncovered)
	}
	if _, err := d.LostPages(); err != nil {
		r.problem("%v", err)
	}
	slices.SortFunc(r.DamagedPages, func(a, b DamagedPage) int { return cmp.Compare(a.PFN, b.PFN) })
	r.OK = len(r.Problems) == 0 && len(r.DamagedChunks) == 0 && r.DamagedPageCount == 0
	return *r, nil
}

type verification struct {
	d      *Reader
	opts   VerifyOptions
	report Report

	mu               sync.Mutex
	done             VerifyProgress
	zeros, uncovered uint64
}

func (v *verification) progress(f func(*VerifyProgress)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f(&v.done)
	if v.opts.Progress != nil {
		v.done.BytesTotal, v.done.PagesTotal = v.d.rec.Size, v.d.pages
		v.opts.Progress(v.done)
	}
}

// bytes compares every chunk of the file with its checksum.
func (v *verification) bytes(ctx context.Context) error {
	d := v.d
	sums, err := d.readSums()
	if errors.Is(err, ErrDamaged) {
		v.report.problem("%v", err)
	} else if err != nil {
		return err
	}
	var read atomic.Int64
	sc := chunkScan{
		r: &progressReader{d: d, v: v}, block0: d.block[:], rec: d.rec, sums: sums,
		workers: v.opts.Workers, bytesRead: &read,
		bad: func(b badChunk) error {
			if b.err != nil {
				v.report.problem("%v", b.err)
			}
			v.report.DamagedChunks = append(v.report.DamagedChunks, ByteRange{b.offset, b.offset + int64(b.n)})
			return nil
		},
	}
	sum, err := sc.run(ctx)
	v.report.SHA256 = hex.EncodeToString(sum[:])
	return err
}

type progressReader struct {
	d *Reader
	v *verification
}

func (p *progressReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.d.r.ReadAt(b, off)
	p.v.progress(func(d *VerifyProgress) { d.Bytes += uint64(n) })
	return n, err
}

// readSums reads the table of checksums, all of it even if it is damaged.
func (d *Reader) readSums() ([]chunkSum, error) {
	b := make([]byte, 0, min(d.sumsBytes(), 4<<20))
	for n := d.sumsBytes(); uint64(len(b)) < n; {
		start := len(b)
		k := int(min(n-uint64(start), 4<<20))
		b = slices.Grow(b, k)[:start+k]
		if err := d.readAt(b[start:], int64(d.rec.SumsOffset)+int64(start), "the table of checksums"); err != nil {
			return nil, err
		}
	}
	sums := make([]chunkSum, d.chunks())
	for i := range sums {
		sums[i] = readChunkSum(b[i*chunkSumBytes:])
	}
	if sha256.Sum256(b) != d.rec.Root {
		return sums, fmt.Errorf("%w: the table of checksums does not match block 0", ErrDamaged)
	}
	return sums, nil
}

const (
	verifyBatch = 4096    // pages whose descriptors are looked at together
	verifySpan  = 1 << 20 // bytes read at once
	verifyGap   = 16 << 10
)

// pages decompresses every page and compares it with its CRC.
func (v *verification) pages(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan []pageAt)
	var workers sync.WaitGroup
	for range v.opts.Workers {
		workers.Go(func() {
			buf := make([]byte, verifySpan)
			for b := range batches {
				v.batch(b, buf)
				v.progress(func(p *VerifyProgress) { p.Pages += uint64(len(b)) })
			}
		})
	}
	err := v.d.eachPage(verifyBatch, func(pages []pageAt) error {
		select {
		case batches <- slices.Clone(pages):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(batches)
	workers.Wait()
	if errors.Is(err, ErrTruncated) {
		v.report.problem("%v", err)
		return nil
	}
	return err
}

// batch checks pages in the order they have in the file, reading neighbours together.
func (v *verification) batch(pages []pageAt, buf []byte) {
	d := v.d
	var damaged []DamagedPage
	var zeros, uncovered uint64
	bad := func(pfn uint64, err error) { damaged = append(damaged, DamagedPage{pfn, err.Error()}) }

	good := pages[:0]
	for _, p := range pages {
		if err := d.checkDesc(&p.desc); err != nil {
			bad(p.pfn, err)
			continue
		}
		if p.desc.offset == d.rec.DataOffset {
			zeros++
		}
		if decodePageInfo(p.desc.pageFlags).Flags&PageUncovered != 0 {
			uncovered++
		}
		good = append(good, p)
	}
	slices.SortFunc(good, byOffset)

	var page [PageSize]byte
	for len(good) > 0 {
		start := good[0].desc.offset
		end, n := start, 0
		for n < len(good) {
			p := &good[n].desc
			pe := max(end, p.offset+uint64(p.size))
			if pe-start > uint64(len(buf)) || p.offset > end+verifyGap {
				break
			}
			end = pe
			n++
		}
		span := buf[:end-start]
		if err := d.readAt(span, int64(start), "page data"); err != nil {
			for _, p := range good[:n] {
				bad(p.pfn, err)
			}
		} else {
			for _, p := range good[:n] {
				if err := d.decode(page[:], span[p.desc.offset-start:][:p.desc.size], &p.desc); err != nil {
					bad(p.pfn, err)
				}
			}
		}
		good = good[n:]
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.zeros += zeros
	v.uncovered += uncovered
	v.report.DamagedPageCount += uint64(len(damaged))
	damaged = damaged[:min(len(damaged), MaxListedPages-len(v.report.DamagedPages))]
	v.report.DamagedPages = append(v.report.DamagedPages, damaged...)
}
