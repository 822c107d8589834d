// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseCPUs(t *testing.T) {
	for text, want := range map[string][]int{"0\n": {0}, "0-3\n": {0, 1, 2, 3}, "0,2-3": {0, 2, 3}} {
		if got, err := parseCPUs(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	if _, err := parseCPUs("none"); err == nil {
		t.Error("no error for a text that is no list")
	}
}

func TestLoadsAreNamed(t *testing.T) {
	seen := map[string]bool{}
	for _, l := range loads {
		if l.name == "" || l.about == "" || seen[l.name] {
			t.Errorf("load %q (%q) has no name, no description, or another's name", l.name, l.about)
		}
		seen[l.name] = true
	}
	if _, err := choose("alloc,nothing"); err == nil {
		t.Error("a load that does not exist was found")
	}
}

// The check of stamped memory must be able to fail.
func TestStampsSeeDamage(t *testing.T) {
	m, err := unix.Mmap(-1, 0, 8*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	if err := stamp(m, 42); err != nil {
		t.Fatal(err)
	}
	if err := checkStamps(m); err != nil {
		t.Fatal(err)
	}
	page := slices.Clone(m[3*pageSize : 4*pageSize])
	copy(m[3*pageSize:], m[2*pageSize:3*pageSize])
	if checkStamps(m) == nil {
		t.Error("a page that holds another one's content was not seen")
	}
	copy(m[3*pageSize:], page)
	binary.LittleEndian.PutUint64(m[3*pageSize:], 0)
	if checkStamps(m) == nil {
		t.Error("a page that was lost was not seen")
	}
	if stamp(m, 43) == nil {
		t.Error("memory that is not fresh was not seen")
	}
}

// The loads that any machine can bear.
func TestRounds(t *testing.T) {
	e := &env{dir: t.TempDir()}
	for _, l := range []load{allocLoad, slabLoad} {
		t.Run(l.name, func(t *testing.T) {
			w, err := l.start(e)
			if err != nil {
				t.Fatal(err)
			}
			for n := range int64(10) {
				if did, err := w.round(context.Background(), n); err != nil || did == 0 {
					t.Fatalf("round %d: %d operations, %v", n, did, err)
				}
			}
		})
	}
	if err := e.close(); err != nil {
		t.Error(err)
	}
}
