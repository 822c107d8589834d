// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

const cellsText = `0 solo 0 slab 0 ff11000001000000 1000000
0 solo 1 vmalloc 0 ff51000001000000 1001000
0 solo 2 stack 0 ff51000001004ee0 1002ee0
1 relay 0 data 1 ffffffffc0000000 1003000
1 relay 1 bss 0 ffffffffc0001000 1004000
`

func TestCheck(t *testing.T) {
	chains, err := parseCells(cellsText)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		live string
		want string // part of what is wrong; empty: nothing
	}{
		"all equal":              {live: "0 0 5\n0 1 5\n0 2 5\n1 0 9\n1 1 9\n"},
		"in the middle":          {live: "0 0 6\n0 1 6\n0 2 5\n1 0 9\n1 1 2\n"},
		"effect without cause":   {live: "0 0 5\n0 1 6\n0 2 6\n1 0 9\n1 1 9\n", want: "vmalloc on CPU 0 is at 6, but slab on CPU 0, its cause, at 5"},
		"across CPUs":            {live: "0 0 5\n0 1 5\n0 2 5\n1 0 9\n1 1 10\n", want: "chain 1: bss on CPU 0 is at 10"},
		"solo torn further":      {live: "0 0 7\n0 1 6\n0 2 5\n1 0 9\n1 1 9\n", want: "chain 0: stack on CPU 0 is at 5 when"},
		"relay may be far apart": {live: "0 0 5\n0 1 5\n0 2 5\n1 0 900\n1 1 2\n"},
	} {
		t.Run(name, func(t *testing.T) {
			values, err := parseLive(c.live, chains)
			if err != nil {
				t.Fatal(err)
			}
			wrong := strings.Join(checkAll(chains, values), "\n")
			if (c.want == "") != (wrong == "") || !strings.Contains(wrong, c.want) {
				t.Errorf("found %q, want %q", wrong, c.want)
			}
		})
	}
}

func TestParseRefusesGaps(t *testing.T) {
	for _, text := range []string{
		"", "0 solo 1 slab 0 ff11000001000000 1000000", "0 solo 0 slab 0 ff11000001000000 0",
		"0 other 0 slab 0 ff11000001000000 1000000",
	} {
		if _, err := parseCells(text); err == nil {
			t.Errorf("no error for %q", text)
		}
	}
	chains, err := parseCells(cellsText)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseLive("0 0 1\n0 1 1\n0 2 1\n1 0 1\n", chains); err == nil {
		t.Error("no error for a missing value")
	}
}
