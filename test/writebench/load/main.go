// SPDX-License-Identifier: Apache-2.0

// load fills a guest's memory the way services do, so that a dump of it compresses like a dump of a
// real node: page cache of programs, sources and libraries, heaps of text, of records with pointers,
// of numbers, of compressed blobs, of memory that was asked for and never written.
//
//	load DIRECTORY MEGABYTES
//
// It reads every file below the directory, keeps that many megabytes of heap, prints "load: full"
// and waits to be killed.
package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: load DIRECTORY MEGABYTES")
		os.Exit(2)
	}
	mb, err := strconv.Atoi(os.Args[2])
	if err == nil {
		err = run(os.Args[1], mb<<20)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
	fmt.Println("load: full")
	_ = unix.Pause() // until a signal ends the program
}

// kept is what must stay reachable.
var kept []any

func run(dir string, bytes int) error {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	// One part in ten is asked for and never written, one in seven does not compress.
	for _, part := range []struct {
		share int // percent
		fill  func(files []string, bytes int) error
	}{{30, text}, {30, records}, {16, numbers}, {14, blobs}, {10, untouched}} {
		if err := part.fill(files, bytes/100*part.share); err != nil {
			return err
		}
	}
	return readAll(files)
}

// readAll leaves the files in the page cache.
func readAll(files []string) error {
	buf := make([]byte, 1<<20)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		for err == nil {
			_, err = f.Read(buf)
		}
		f.Close()
	}
	return nil
}

// text keeps the lines of files, each by itself, and an index of their words.
func text(files []string, bytes int) error {
	index := map[string][]int32{}
	var lines []string
	for _, name := range files {
		if !strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".h") {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		s := bufio.NewScanner(f)
		for s.Scan() && bytes > 0 {
			line := strings.Clone(s.Text())
			lines = append(lines, line)
			bytes -= len(line) + 24
			if word := strings.Fields(line); len(word) > 1 {
				index[word[0]] = append(index[word[0]], int32(len(lines)))
				bytes -= 8
			}
		}
		f.Close()
		if bytes <= 0 {
			break
		}
	}
	kept = append(kept, lines, index)
	return nil
}

// record is an object of a service: pointers, times, states, short texts.
type record struct {
	next, parent *record
	name, owner  string
	created      time.Time
	updated      time.Time
	id           [16]byte
	state        int32
	flags        uint32
	counters     [6]uint64
	labels       []string
}

func records(_ []string, bytes int) error {
	rng := rand.New(rand.NewPCG(1, 2))
	owners := []string{"kube-system", "default", "monitoring", "ingress", "tenant-a", "tenant-b"}
	labels := []string{"app=web", "app=db", "tier=backend", "zone=a", "zone=b"}
	start := time.Unix(1767225600, 0)
	var last, parent *record
	for n := 0; bytes > 0; n++ {
		r := &record{next: last, parent: parent, name: "object-" + strconv.Itoa(n), owner: owners[rng.IntN(len(owners))],
			created: start.Add(time.Duration(n) * time.Millisecond), state: int32(rng.IntN(4))}
		r.updated = r.created.Add(time.Duration(rng.IntN(1e9)))
		for i := range r.id {
			r.id[i] = byte(rng.Uint32())
		}
		for i := range rng.IntN(6) {
			r.counters[i] = uint64(rng.IntN(100000))
		}
		r.labels = append(r.labels, labels[rng.IntN(5)], labels[rng.IntN(5)])
		if n%16 == 0 {
			parent = r
		}
		last = r
		bytes -= 256 + 16 + 32
	}
	kept = append(kept, last)
	return nil
}

// numbers are time series: floats with noise, and integers that grow.
func numbers(_ []string, bytes int) error {
	rng := rand.New(rand.NewPCG(3, 4))
	for bytes > 0 {
		floats, counts := make([]float64, 64<<10), make([]uint64, 64<<10)
		v, c := rng.Float64()*100, uint64(rng.IntN(1000))
		for i := range floats {
			v += rng.NormFloat64()
			c += uint64(rng.IntN(50))
			floats[i], counts[i] = math.Round(v*100)/100, c
		}
		kept = append(kept, floats, counts)
		bytes -= 1 << 20
	}
	return nil
}

// blobs are what compressed or encrypted data looks like: pseudorandom.
func blobs(_ []string, size int) error {
	b := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(b) // never fails
	kept = append(kept, b)
	return nil
}

// untouched is memory that is there, all zeros.
func untouched(_ []string, bytes int) error {
	b, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("mapping %d bytes: %w", bytes, err)
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = 0
	}
	kept = append(kept, b)
	return nil
}
