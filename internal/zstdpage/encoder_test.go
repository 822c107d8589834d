// SPDX-License-Identifier: Apache-2.0

package zstdpage

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func newDecoder(t testing.TB) *zstd.Decoder {
	t.Helper()
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// check compresses a page twice with the same encoder, so that what one page leaves behind shows.
func check(t testing.TB, e *Encoder, d *zstd.Decoder, page []byte) (size int) {
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
	got, err := d.DecodeAll(out[3:], make([]byte, 0, PageSize))
	if err != nil {
		t.Fatalf("%d bytes do not decompress: %v", len(out)-3, err)
	}
	if !bytes.Equal(got, page) {
		t.Fatal("decompresses to something else")
	}
	return len(out) - 3
}

// pages of many kinds, made from a seed.
func testPage(seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, PageSize)
	le := binary.LittleEndian
	switch kind := seed % 8; kind {
	case 0: // few symbols, skewed
		n := 1 + rng.IntN(256)
		for i := range b {
			b[i] = byte(rng.IntN(1 + rng.IntN(n)))
		}
	case 1: // pointers into few regions
		for i := 0; i < PageSize; i += 8 {
			if rng.IntN(3) > 0 {
				le.PutUint64(b[i:], 0xffff888000000000+uint64(rng.IntN(1<<uint(8+rng.IntN(24))))<<3)
			}
		}
	case 2: // random up to somewhere
		for i := range rng.IntN(PageSize + 1) {
			b[i] = byte(rng.Uint32())
		}
	case 3: // text
		words := []string{"page", "frame", "kernel", "struct", "livedump", "freeze ", "\n", "0123456789abcdef"}
		for i := 0; i < PageSize; {
			i += copy(b[i:], words[rng.IntN(len(words))])
		}
	case 4: // one run after the other
		for i := 0; i < PageSize; {
			c, n := byte(rng.Uint32()), 1+rng.IntN(1<<rng.IntN(12))
			for ; n > 0 && i < PageSize; n-- {
				b[i] = c
				i++
			}
		}
	case 5: // a few bytes in zeros
		for range 1 + rng.IntN(40) {
			b[rng.IntN(PageSize)] = byte(rng.Uint32())
		}
	case 6: // copies of earlier parts, also of the very beginning and end
		for i := range b[:64] {
			b[i] = byte(rng.Uint32())
		}
		for i := 64; i < PageSize; {
			from, n := rng.IntN(i), 1+rng.IntN(60)
			for ; n > 0 && i < PageSize; n-- {
				b[i] = b[from]
				i++
				from++
			}
			if rng.IntN(2) == 0 && i < PageSize {
				b[i] = byte(rng.Uint32())
				i++
			}
		}
	case 7: // counts like Fibonacci numbers make the longest codes
		x, y := 1, 1
		for i, s := 0, 0; i < PageSize; s++ {
			for n := x; n > 0 && i < PageSize; n-- {
				b[i] = byte(s * 7)
				i++
			}
			x, y = y, x+y
		}
		rng.Shuffle(PageSize, func(i, j int) { b[i], b[j] = b[j], b[i] })
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	e, d := &Encoder{}, newDecoder(t)
	for seed := range uint64(20000) {
		check(t, e, d, testPage(seed))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	for _, c := range []byte{0, 1, 255} {
		if n := check(t, e, d, bytes.Repeat([]byte{c}, PageSize)); n > 32 {
			t.Errorf("a page of %#x takes %d bytes", c, n)
		}
	}
}

func FuzzEncode(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(testPage(seed))
	}
	d := newDecoder(f)
	e := &Encoder{}
	f.Fuzz(func(t *testing.T, b []byte) {
		page := make([]byte, PageSize)
		for i := 0; i < PageSize && len(b) > 0; { // what is shorter comes again
			i += copy(page[i:], b)
		}
		check(t, e, d, page)
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
