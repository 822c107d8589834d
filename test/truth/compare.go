// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
)

// Mismatch is a page whose content in the dump is not that of the stop.
type Mismatch struct {
	PFN   string `json:"pfn"`
	Class string `json:"class"`
	Alias string `json:"alias"`
	Flags string `json:"flags"`
	Page  string `json:"page"`
	// Words are some of those that differ: offset, as in the stop, as in the dump.
	Words []string `json:"words,omitempty"`

	kept uint32
	got  []byte
}

// Count is of pages of one kind.
type Count struct {
	Pages  uint64 `json:"pages"`
	Differ uint64 `json:"differ"`
}

func (c *Count) add(differs bool) {
	c.Pages++
	if differs {
		c.Differ++
	}
}

// Comparison is one dump against the truth.
type Comparison struct {
	// Pages were compared.
	Pages uint64 `json:"pages"`
	// Mismatches are pages that differ though nothing said that they might.
	Mismatches uint64 `json:"mismatches"`
	Lost       uint64 `json:"lost"`
	// ByClass counts compared pages that were not flagged, and how many of these differ.
	ByClass map[string]*Count `json:"by_class"`
	// ByAlias is the same by the mappings that the pages had.
	ByAlias map[string]*Count `json:"by_alias"`
	// Unstable are pages flagged as uncovered, and how many differ; by class and mappings.
	Unstable        Count             `json:"unstable"`
	UnstableByAlias map[string]*Count `json:"unstable_by_alias"`
	// PageTables are pages whose Accessed and Dirty bits the processor sets, and how many of these
	// differ in nothing else.
	PageTables Count      `json:"page_tables"`
	List       []Mismatch `json:"list,omitempty"`
}

func newComparison() *Comparison {
	return &Comparison{ByClass: map[string]*Count{}, ByAlias: map[string]*Count{}, UnstableByAlias: map[string]*Count{}}
}

func count(m map[string]*Count, key string, differs bool) {
	if m[key] == nil {
		m[key] = &Count{}
	}
	m[key].add(differs)
}

// maxListed bounds the list, for a spoilt run has thousands.
const maxListed = 100

// source is the finished dump.
type source interface {
	ReadPage(pfn uint64, page []byte) (kdump.PageInfo, error)
	Pages() uint64
}

// compare reads every page that the session reported from the finished dump. With takenOver the session had two owners:
// pages were reported to both, and the record is that of the second time, when a page may have been copied or lost that the
// dump has from the first. Its content counts all the same.
func compare(dump source, records []record, takenOver bool) (*Comparison, error) {
	c := newComparison()
	seen := map[uint64]bool{}
	page := make([]byte, session.PageSize)
	for _, r := range records {
		if seen[r.PFN] && takenOver {
			continue
		}
		if seen[r.PFN] {
			return nil, fmt.Errorf("page frame %#x was reported twice", r.PFN)
		}
		seen[r.PFN] = true
		if takenOver {
			if info, err := dump.ReadPage(r.PFN, page); err == nil {
				r.Flags = session.PageFlags(info.Flags)
			}
		}
		if r.Flags&session.PageLost != 0 {
			c.Lost++
			if _, err := dump.ReadPage(r.PFN, page); !errors.Is(err, kdump.ErrExcluded) {
				return nil, fmt.Errorf("page frame %#x is lost, but reading it from the dump gives %w", r.PFN, err)
			}
			continue
		}
		info, err := dump.ReadPage(r.PFN, page)
		if err != nil {
			return nil, err
		}
		if session.Class(info.Class) != r.Class || session.PageFlags(info.Flags) != r.Flags {
			return nil, fmt.Errorf("page frame %#x: the dump says class %v and flags %#x, the module reported %v and %#x",
				r.PFN, info.Class, info.Flags, r.Class, r.Flags)
		}
		c.page(&r, page)
	}
	if c.Pages == 0 {
		return nil, errors.New("no page was compared")
	}
	if c.Pages != dump.Pages() {
		return nil, fmt.Errorf("the dump has %d pages, %d were compared", dump.Pages(), c.Pages)
	}
	return c, nil
}

func (c *Comparison) page(r *record, page []byte) {
	plain, unaccessed := hashes(page)
	differs := plain != r.Hash
	c.Pages++
	if r.Flags&session.PageUncovered != 0 {
		c.Unstable.add(differs)
		count(c.UnstableByAlias, r.Class.String()+" "+r.Aliases.String(), differs)
		return
	}
	if r.Flags&session.PageTable != 0 {
		c.PageTables.add(differs && unaccessed == r.HashUnaccessed)
		differs = unaccessed != r.HashUnaccessed
	}
	count(c.ByClass, r.Class.String(), differs)
	count(c.ByAlias, r.Aliases.String(), differs)
	if !differs {
		return
	}
	c.Mismatches++
	if len(c.List) < maxListed {
		c.List = append(c.List, Mismatch{
			PFN: fmt.Sprintf("%#x", r.PFN), Class: r.Class.String(), Alias: r.Aliases.String(), Flags: fmt.Sprintf("%#x", uint32(r.Flags)),
			Page: fmt.Sprintf("flags %#x mapping %#x refcount %d mapcount %#x", r.PageFlags, r.Mapping, int32(r.RefCount), r.MapCount),
			kept: r.Kept, got: bytes.Clone(page),
		})
	}
}

// explain says in which words a page differs from its content of the stop.
func (m *Mismatch) explain(was []byte) {
	const shown = 8
	differ := 0
	for i := 0; i < len(was); i += 8 {
		a, b := binary.LittleEndian.Uint64(was[i:]), binary.LittleEndian.Uint64(m.got[i:])
		if a == b {
			continue
		}
		if differ++; differ <= shown {
			m.Words = append(m.Words, fmt.Sprintf("%#05x: %016x %016x", i, a, b))
		}
	}
	m.Words = append(m.Words, fmt.Sprintf("%d words differ", differ))
}
