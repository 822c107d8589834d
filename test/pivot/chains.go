// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"strings"

	"livedump.io/internal/kdump"
)

// cell is a counter of kmod/test/pivot.c and where it is.
type cell struct {
	chain, index int
	kind         string
	cpu          int
	va, pa       uint64
}

func (c cell) String() string { return fmt.Sprintf("%s on CPU %d", c.kind, c.cpu) }

// chain is a row of cells from cause to effect.
type chain struct {
	// solo: one thread writes all cells, so they differ by one at most.
	solo  bool
	cells []cell
}

// parseCells reads the module's file "cells".
func parseCells(text string) ([]chain, error) {
	var chains []chain
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		var c cell
		var writers string
		if _, err := fmt.Sscanf(line, "%d %s %d %s %d %x %x", &c.chain, &writers, &c.index, &c.kind, &c.cpu, &c.va, &c.pa); err != nil {
			return nil, fmt.Errorf("cell %q: %w", line, err)
		}
		if c.chain == len(chains) {
			chains = append(chains, chain{solo: writers == "solo"})
		}
		if c.chain != len(chains)-1 || c.index != len(chains[c.chain].cells) || writers != "solo" && writers != "relay" {
			return nil, fmt.Errorf("cell %q does not follow the one before it", line)
		}
		if c.pa == 0 || c.pa%8 != 0 {
			return nil, fmt.Errorf("cell %q has no address in memory", line)
		}
		last := &chains[c.chain]
		last.cells = append(last.cells, c)
	}
	if len(chains) == 0 {
		return nil, fmt.Errorf("no cells in %q", text)
	}
	return chains, nil
}

// parseLive reads the module's file "live": values by chain.
func parseLive(text string, chains []chain) ([][]uint64, error) {
	values := make([][]uint64, len(chains))
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		var n, index int
		var value uint64
		if _, err := fmt.Sscanf(line, "%d %d %d", &n, &index, &value); err != nil {
			return nil, fmt.Errorf("value %q: %w", line, err)
		}
		if n >= len(chains) || index != len(values[n]) {
			return nil, fmt.Errorf("value %q is of no cell", line)
		}
		values[n] = append(values[n], value)
	}
	for n, c := range chains {
		if len(values[n]) != len(c.cells) {
			return nil, fmt.Errorf("%d values of the %d cells of chain %d", len(values[n]), len(c.cells), n)
		}
	}
	return values, nil
}

// Where a struct cell has its fields.
const (
	cellMagic     = 0x6c64706976307431
	cellChainAt   = 8
	cellIndexAt   = 12
	cellValueAt   = 16
	cellBytes     = 24
	dumpPageBytes = 4096
)

// readDump takes the values out of a dump.
func readDump(file string, chains []chain) ([][]uint64, error) {
	d, err := kdump.Open(file)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	values := make([][]uint64, len(chains))
	page := make([]byte, dumpPageBytes)
	for n, ch := range chains {
		for i, c := range ch.cells {
			if _, err := d.ReadPage(c.pa/dumpPageBytes, page); err != nil {
				return nil, fmt.Errorf("chain %d, cell %d (%s): %w", n, i, c, err)
			}
			raw := page[c.pa%dumpPageBytes:]
			if len(raw) < cellBytes || binary.LittleEndian.Uint64(raw) != cellMagic ||
				binary.LittleEndian.Uint32(raw[cellChainAt:]) != uint32(n) || binary.LittleEndian.Uint32(raw[cellIndexAt:]) != uint32(i) {
				return nil, fmt.Errorf("chain %d, cell %d (%s): the dump has something else at %#x", n, i, c, c.pa)
			}
			values[n] = append(values[n], binary.LittleEndian.Uint64(raw[cellValueAt:]))
		}
	}
	return values, nil
}

// check says where the values of a chain are not of one instant; nil if they may be.
func (c chain) check(values []uint64) error {
	for i := 1; i < len(values); i++ {
		if values[i] > values[i-1] {
			return fmt.Errorf("%s is at %d, but %s, its cause, at %d (all: %d)", c.cells[i], values[i], c.cells[i-1], values[i-1], values)
		}
	}
	if first, last := values[0], values[len(values)-1]; c.solo && first > last+1 {
		return fmt.Errorf("%s is at %d when %s is at %d already: one thread writes both in turn (all: %d)",
			c.cells[len(values)-1], last, c.cells[0], first, values)
	}
	return nil
}

// checkAll checks every chain and names the one that is wrong.
func checkAll(chains []chain, values [][]uint64) []string {
	var wrong []string
	for n, c := range chains {
		if err := c.check(values[n]); err != nil {
			wrong = append(wrong, fmt.Sprintf("chain %d: %v", n, err))
		}
	}
	return wrong
}
