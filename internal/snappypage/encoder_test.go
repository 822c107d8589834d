// SPDX-License-Identifier: Apache-2.0

package snappypage

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/snappy"
	"golang.org/x/sys/unix"
)

// check compresses a page behind other bytes and reads it with another's decoder.
func check(t testing.TB, e *Encoder, page []byte) (size int) {
	t.Helper()
	buf := make([]byte, 3, 3+Room)
	copy(buf, "abc")
	out, ok := e.Encode(buf, page)
	if string(out[:3]) != "abc" {
		t.Fatal("Encode changed what was there before")
	}
	if !ok {
		if len(out) != 3 {
			t.Fatalf("%d bytes of a page that is given up", len(out))
		}
		return PageSize
	}
	if len(out)-3 >= PageSize {
		t.Fatalf("%d bytes", len(out)-3)
	}
	got, err := snappy.Decode(nil, out[3:])
	if err != nil || !bytes.Equal(got, page) {
		t.Fatalf("%d bytes decompress to something else: %v", len(out)-3, err)
	}
	return len(out) - 3
}

// testPage is made of runs, copies of what was before, words and noise, in shares that the seed decides.
func testPage(seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	var b []byte
	kinds := 1 + rng.IntN(4)
	for len(b) < PageSize {
		n := 1 + rng.IntN(1<<rng.IntN(9))
		switch k := rng.IntN(4); {
		case k == 0 || kinds == 1 && seed%2 == 0:
			b = append(b, bytes.Repeat([]byte{byte(rng.Uint32())}, n)...)
		case k == 1 && len(b) > 0:
			from := rng.IntN(len(b))
			for i := range n {
				b = append(b, b[from+i])
			}
		case k == 2:
			b = binary.LittleEndian.AppendUint64(b, 0xffff888000000000+rng.Uint64N(1<<uint(4+rng.IntN(28))))
		default:
			for range n {
				b = append(b, byte(rng.Uint32()))
			}
		}
	}
	return b[:PageSize]
}

func TestRoundTrip(t *testing.T) {
	e := &Encoder{}
	shrunk := 0
	for seed := range uint64(5000) {
		if check(t, e, testPage(seed)) < PageSize {
			shrunk++
		}
	}
	if shrunk < 2500 {
		t.Errorf("only %d pages shrink", shrunk)
	}
	for _, c := range []byte{0, 255} {
		if n := check(t, e, bytes.Repeat([]byte{c}, PageSize)); n > 220 {
			t.Errorf("a page of %#x takes %d bytes", c, n)
		}
	}
	noise := make([]byte, PageSize)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	if n := check(t, e, noise); n != PageSize {
		t.Errorf("noise takes %d bytes", n)
	}
}

func TestNoAllocations(t *testing.T) {
	e := &Encoder{}
	dst := make([]byte, 0, Room)
	for seed := range uint64(16) {
		page := testPage(seed)
		if n := testing.AllocsPerRun(10, func() { e.Encode(dst, page) }); n > 0 {
			t.Errorf("seed %d: %v allocations", seed, n)
		}
	}
}

func FuzzEncode(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(testPage(seed))
	}
	e := &Encoder{}
	f.Fuzz(func(t *testing.T, b []byte) {
		page := make([]byte, PageSize)
		for i := 0; i < PageSize && len(b) > 0; { // what is shorter comes again
			i += copy(page[i:], b)
		}
		check(t, e, page)
	})
}

func BenchmarkEncode(b *testing.B) {
	e := &Encoder{}
	var pages [][]byte
	for seed := range uint64(64) {
		pages = append(pages, testPage(seed))
	}
	dst := make([]byte, 0, Room)
	b.SetBytes(PageSize)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e.Encode(dst, pages[i%len(pages)])
	}
}

// pageBeforeNothing is a page behind which nothing can be read.
func pageBeforeNothing(t *testing.T) []byte {
	b, err := unix.Mmap(-1, 0, 2*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	if err := unix.Mprotect(b[PageSize:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	return b[:PageSize]
}
