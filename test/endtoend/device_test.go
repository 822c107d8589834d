// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"os"
	"path/filepath"
	"testing"
)

func TestContentDigestSeesEveryWrite(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	digest := func() string {
		t.Helper()
		d, err := contentDigest(image)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	write := func(at int64, b ...byte) {
		t.Helper()
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	empty := digest()
	// Zeros on the disk are what was there before.
	write(1<<20, make([]byte, 8192)...)
	if digest() != empty {
		t.Error("written zeros count as a change")
	}
	seen := map[string]bool{empty: true}
	for _, at := range []int64{0, 4095, 1<<20 + 5, 64<<20 - 1} {
		write(at, 1)
		if d := digest(); seen[d] {
			t.Errorf("a byte at %d was not seen", at)
		} else {
			seen[d] = true
		}
	}
	write(0, 0)
	write(4095, 0)
	write(1<<20+5, 0)
	write(64<<20-1, 0)
	if digest() != empty {
		t.Error("the content is as before, the digest is not")
	}
}
