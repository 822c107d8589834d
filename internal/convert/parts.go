// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"filippo.io/age"

	"livedump.io/internal/kdump"
)

// ErrPart: this is not all of a split dump.
var ErrPart = errors.New("not all parts of a split dump")

// OpenAll opens a dump, or all parts of a split one, in any order.
func OpenAll(paths []string, identities ...age.Identity) (_ *Source, err error) {
	var parts []*Source
	defer func() {
		if err != nil {
			for _, p := range parts {
				err = errors.Join(err, p.Close())
			}
		}
	}()
	for i, path := range paths {
		s, err := Open(path, identities...)
		if err != nil {
			return nil, err
		}
		parts = append(parts, s)
		if s.part == nil && len(paths) > 1 {
			return nil, fmt.Errorf("%s: %w: it is a whole dump", path, ErrPart)
		}
		if i > 0 && !parts[0].dump.SameDump(s.dump) {
			return nil, fmt.Errorf("%w: %s and %s are of different dumps", ErrPart, paths[0], path)
		}
	}
	if parts[0].part == nil {
		return parts[0], nil
	}
	slices.SortFunc(parts, func(a, b *Source) int { return cmp.Compare(a.part.Start, b.part.Start) })
	next := uint64(0)
	for _, p := range parts {
		if p.part.Start != next {
			return nil, fmt.Errorf("%w: one begins with page frame %#x where %#x should come", ErrPart, p.part.Start, next)
		}
		next = p.part.End
	}
	if maxPFN := parts[0].Meta.MaxPFN; next != maxPFN {
		return nil, fmt.Errorf("%w: nothing from page frame %#x to %#x", ErrPart, next, maxPFN)
	}
	return join(parts), nil
}

// join makes one source of parts in order.
func join(parts []*Source) *Source {
	s := &Source{Meta: parts[0].Meta, Format: fmt.Sprintf("%s in %d parts", parts[0].Format, len(parts))}
	s.Meta.Pages = 0
	counted := true
	for _, p := range parts {
		s.Meta.Pages += p.Meta.Pages
		s.Lost += p.Lost
		counted = counted && p.count != nil
	}
	s.each = func(ctx context.Context, workers int, f func([]kdump.PageRef, []byte) error) error {
		for _, p := range parts {
			if err := p.each(ctx, workers, f); err != nil {
				return err
			}
		}
		return nil
	}
	if counted {
		s.count = func(keep func(c kdump.Class, zero bool) bool) (n uint64, err error) {
			for _, p := range parts {
				k, err := p.count(keep)
				if err != nil {
					return 0, err
				}
				n += k
			}
			return n, nil
		}
	}
	s.read = func(pfn uint64, b []byte) error {
		for _, p := range parts {
			if pfn < p.part.End {
				return p.read(pfn, b)
			}
		}
		return fmt.Errorf("page frame %#x: %w", pfn, kdump.ErrNotRAM)
	}
	s.close = func() (err error) {
		for _, p := range parts {
			err = errors.Join(err, p.close())
		}
		return err
	}
	// What a part says of itself and its checksums is about that part: inspect and verify take one at a time.
	alone := fmt.Errorf("%w: each part is inspected and verified by itself", errors.ErrUnsupported)
	s.info = func() (kdump.Info, error) { return kdump.Info{}, alone }
	s.verify = func(context.Context, kdump.VerifyOptions) (kdump.Report, error) { return kdump.Report{}, alone }
	return s
}
