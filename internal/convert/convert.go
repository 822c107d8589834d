// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"filippo.io/age"

	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
)

// Options of Run.
type Options struct {
	// Format of the result; Natural is kdump-compressed.
	Format format.Format
	Codec  kdump.Codec
	Level  int // of the codec
	// DumpLevel, if it is more than the source's, leaves out classes of pages, makedumpfile's bits.
	DumpLevel int
	// Workers compress at once. 0: GOMAXPROCS.
	Workers int
	// Verify reads the result back and compares it with what was meant to be written.
	Verify bool
	// Parts, if there are more than one, are the files that a kdump-compressed dump is split among: their names are PartName.
	Parts int
	// Recipients, if there are any, can decrypt the result; nobody else can read it. Not for ELF.
	Recipients []age.Recipient
	// Progress, if not nil, is given the Writer's progress to ask for.
	Progress func(ask func() kdump.Progress)
}

// keep says whether pages of a class belong into a dump of the level.
func keep(level int, c kdump.Class, zero bool) bool {
	const zeros, cache, cachePrivate, user, free = 1, 2, 4, 8, 16
	if zero && level&zeros != 0 {
		return false
	}
	switch c {
	case kdump.ClassCache:
		return level&(cache|cachePrivate) == 0
	case kdump.ClassCachePrivate:
		return level&cachePrivate == 0
	case kdump.ClassUser, kdump.ClassHugetlb:
		return level&user == 0
	case kdump.ClassFree:
		return level&free == 0
	}
	return true
}

var zeroPage [kdump.PageSize]byte

// indexPages are 16 GiB: where a dump is converted nobody counts the memory as on a node, and what does not fit is sorted twice.
const indexPages = 4 << 20

// Run writes the source's pages as a dump to the file path.
func Run(ctx context.Context, s *Source, path string, o Options) (sum kdump.Summary, err error) {
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if s.part != nil {
		return sum, fmt.Errorf("%w: %s; name all parts", ErrPart, s.Format)
	}
	meta := s.Meta
	level := meta.DumpLevel | o.DumpLevel
	filter := level != meta.DumpLevel
	if filter {
		if meta.Pages, err = s.countKept(ctx, o.Workers, level); err != nil {
			return sum, err
		}
		meta.DumpLevel = level
	}
	room, err := o.Format.MaxRoom(meta.MaxPFN, meta.Pages, len(meta.Notes))
	if err != nil {
		return sum, err
	}
	out, err := createAll(path, room+16*int64(s.Lost)+kdump.PageSize, meta.Session, o)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w, err := format.NewWriter(out, o.Format, meta, kdump.Options{Codec: o.Codec, Level: o.Level, Workers: o.Workers, NoReadBack: !o.Verify,
		IndexPages: indexPages})
	if err != nil {
		return sum, err
	}
	if o.Progress != nil {
		o.Progress(w.Progress)
	}
	add := w.Add
	if filter {
		add = func(refs []kdump.PageRef, data []byte) error { return addKept(w, level, refs, data) }
	}
	if err = s.each(ctx, o.Workers, add); err == nil {
		sum, err = w.Finish(ctx)
	}
	if err != nil {
		return sum, errors.Join(err, w.Abort(err))
	}
	return sum, nil
}

// PartName is the name of the i-th part, from 0, of a dump that is split among files.
func PartName(path string, i int) string { return fmt.Sprintf("%s.%d", path, i+1) }

// createAll makes the files that are written to: one, or as many as there are parts.
func createAll(path string, room int64, session kdump.Session, o Options) (target.Target, error) {
	if o.Parts <= 1 {
		return create(path, room, session, o)
	}
	if o.Format != format.Kdump && o.Format != format.Natural {
		return nil, fmt.Errorf("%w: only a kdump-compressed dump can be split", format.ErrFormat)
	}
	parts := &target.Parts{}
	for i := range o.Parts {
		t, err := create(PartName(path, i), room, session, o)
		if err != nil {
			return nil, errors.Join(err, parts.Close())
		}
		parts.Parts = append(parts.Parts, t.(target.Random)) // as all but a flattened stream are
	}
	return parts, nil
}

// create makes the file that is written to, encrypted if it is to be.
func create(path string, room int64, session kdump.Session, o Options) (target.Target, error) {
	if len(o.Recipients) == 0 {
		return target.CreateFile(path, target.FileOptions{Room: room})
	}
	if o.Format == format.ELF {
		return nil, errors.New("an ELF vmcore has holes and cannot be encrypted: write it as kdump")
	}
	room += room/1024 + 1<<20 // the header, and a tag for each 64 KiB
	file, err := target.CreateFile(path, target.FileOptions{Room: room})
	if err != nil {
		return nil, err
	}
	var out target.Target = file
	if o.Format == format.Flattened {
		if out, err = target.NewAppender(file); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	encrypted, err := target.Encrypt(out, o.Recipients, session)
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return encrypted, nil
}

// countKept is how many pages will be in the dump, lost ones included.
func (s *Source) countKept(ctx context.Context, workers, level int) (uint64, error) {
	if s.count != nil {
		n, err := s.count(func(c kdump.Class, zero bool) bool { return keep(level, c, zero) })
		return n + s.Lost, err
	}
	if level&^(s.Meta.DumpLevel|1) != 0 {
		return 0, fmt.Errorf("dump level %d: the classes of pages of this %s are not known, so that only level 1 (no zero pages) can be added",
			level, s.Format)
	}
	var n atomic.Uint64
	err := s.each(ctx, workers, func(refs []kdump.PageRef, data []byte) error {
		for i := range refs {
			if !bytes.Equal(data[i*kdump.PageSize:][:kdump.PageSize], zeroPage[:]) {
				n.Add(1)
			}
		}
		return nil
	})
	return n.Load(), err
}

// addKept adds the pages that stay, as many at a time as lie side by side.
func addKept(w format.Writer, level int, refs []kdump.PageRef, data []byte) error {
	for start := 0; start < len(refs); {
		end := start
		for end < len(refs) {
			p := &refs[end]
			page := data[end*kdump.PageSize:][:kdump.PageSize]
			if p.Flags&kdump.PageLost == 0 && !keep(level, p.Class, bytes.Equal(page, zeroPage[:])) {
				break
			}
			end++
		}
		if start < end {
			if err := w.Add(refs[start:end], data[start*kdump.PageSize:end*kdump.PageSize]); err != nil {
				return err
			}
		}
		start = end + 1
	}
	return nil
}
