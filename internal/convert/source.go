// SPDX-License-Identifier: Apache-2.0

// Package convert makes a dump of another: in another format or compression, or with fewer pages.
package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"filippo.io/age"

	"livedump.io/internal/agefile"
	"livedump.io/internal/elfcore"
	"livedump.io/internal/kdump"
	"livedump.io/internal/kernelmem"
)

// Source is a dump to read.
type Source struct {
	// Meta is what the dump says besides its pages. Meta.Pages counts all of them.
	Meta kdump.Meta
	// Lost pages, of Meta.Pages.
	Lost uint64
	// Format is what it is, in words.
	Format string

	each  func(ctx context.Context, workers int, f func([]kdump.PageRef, []byte) error) error
	count func(keep func(c kdump.Class, zero bool) bool) (uint64, error) // nil: the pages' classes are not known
	read  kernelmem.PageReader
	close func() error
	part  *kdump.PFNRange // which page frames it is about, if it is one part of a split dump
	dump  *kdump.Reader   // nil of an ELF vmcore
	info  func() (kdump.Info, error)
	// verify is nil if there is nothing to compare the dump with.
	verify func(ctx context.Context, o kdump.VerifyOptions) (kdump.Report, error)
}

// ByLivedump says whether livedump wrote the dump.
func (s *Source) ByLivedump() bool { return s.count != nil }

// Info is what the dump says of itself.
func (s *Source) Info() (kdump.Info, error) { return s.info() }

// Verify compares every byte and page of a dump of livedump with its checksums; see kdump.Reader.Verify.
func (s *Source) Verify(ctx context.Context, o kdump.VerifyOptions) (kdump.Report, error) {
	return s.verify(ctx, o)
}

// Open opens a dump of any format that livedump reads. One that is encrypted takes an identity; without one that
// fits the error is agefile.ErrEncrypted.
func Open(path string, identities ...age.Identity) (*Source, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var magic [32]byte
	n, _ := f.ReadAt(magic[:], 0) // what cannot be read is said below, with more words
	f.Close()
	switch {
	case bytes.HasPrefix(magic[:n], []byte("\x7fELF")):
		return openCore(path)
	case agefile.IsAge(magic[:n]):
		return openEncrypted(path, identities)
	}
	return openKdump(path)
}

func openEncrypted(path string, identities []age.Identity) (*Source, error) {
	f, err := agefile.Open(path, identities...)
	if err != nil {
		return nil, err
	}
	r, err := kdump.OpenAt(f, f.Size)
	if err != nil {
		return nil, fmt.Errorf("%s, decrypted: %w", path, errors.Join(err, f.Close()))
	}
	s, err := sourceOf(path, r, f.Close)
	if err == nil {
		s.Format += ", encrypted"
	}
	return s, err
}

// Close ends the use of the Source.
func (s *Source) Close() error { return s.close() }

// Memory is the kernel's memory in the dump.
func (s *Source) Memory() (*kernelmem.Memory, error) {
	m := &s.Meta
	if m.VMCoreInfoBytes == 0 {
		return nil, errors.New("the dump has no VMCOREINFO")
	}
	return kernelmem.New(kdump.ParseVMCoreInfo(m.Notes[m.VMCoreInfoOffset:][:m.VMCoreInfoBytes]), s.read)
}

func openCore(path string) (*Source, error) {
	c, err := elfcore.Open(path)
	if err != nil {
		return nil, err
	}
	s := &Source{Format: "ELF vmcore", read: c.ReadPage, close: c.Close}
	s.verify = func(ctx context.Context, _ kdump.VerifyOptions) (kdump.Report, error) { return c.Verify(ctx) }
	s.info = func() (kdump.Info, error) {
		i, err := c.Info()
		i.Utsname = s.Meta.Utsname
		return i, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	s.Meta = kdump.Meta{
		MaxPFN: c.MaxPFN(), Pages: c.Pages(), RAM: c.RAM(), NrCPUs: c.NrCPUs, Notes: c.Notes,
		VMCoreInfoOffset: c.VMCoreInfoOffset, VMCoreInfoBytes: c.VMCoreInfoBytes, FrozenAt: st.ModTime(),
	}
	mem, err := s.Memory()
	if err == nil {
		s.Meta.Utsname, err = mem.Utsname()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Join(err, c.Close()))
	}
	if r := c.Record; r != nil {
		m := &s.Meta
		m.Session, m.FrozenAt, m.Stop, m.ClassPages = r.Session, r.FrozenAt, r.Stop, r.ClassPages
		m.Pages, m.DumpLevel = r.Pages+r.Lost, c.DumpLevel
		s.Lost, s.each, s.count = r.Lost, c.EachRef, c.CountRefs
		return s, nil
	}
	s.each = func(ctx context.Context, workers int, f func([]kdump.PageRef, []byte) error) error {
		return c.EachPage(ctx, workers, func(first uint64, data []byte) error {
			var refs [elfcore.BatchPages]kdump.PageRef
			n := len(data) / kdump.PageSize
			for i := range refs[:n] {
				refs[i].PFN = first + uint64(i)
			}
			return f(refs[:n], data)
		})
	}
	return s, nil
}

func openKdump(path string) (*Source, error) {
	r, err := kdump.Open(path)
	if err != nil {
		return nil, err
	}
	return sourceOf(path, r, r.Close)
}

func sourceOf(path string, r *kdump.Reader, closeAll func() error) (*Source, error) {
	meta, err := r.Meta()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Join(err, closeAll()))
	}
	s := &Source{
		Meta: meta, Format: "kdump-compressed v6", each: r.EachPage, close: closeAll, info: r.Info, verify: r.Verify,
		read: func(pfn uint64, b []byte) error {
			_, err := r.ReadPage(pfn, b)
			return err
		},
	}
	s.dump = r
	if part, is := r.Part(); is {
		s.part = &part
		s.Format += fmt.Sprintf(", the part with page frames %#x to %#x", part.Start, part.End-1)
	}
	if rec := r.Record(); rec != nil {
		s.count, s.Lost = r.CountPages, rec.Lost
	}
	return s, nil
}
