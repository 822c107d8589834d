// SPDX-License-Identifier: Apache-2.0

package churn

import (
	"bytes"
	"context"
	"testing"
)

func TestCheckSeesEveryDamage(t *testing.T) {
	const size = 3*4096 + 5
	good := make([]byte, size)
	Fill(good, 7)
	if err := Check(good, 7); err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	damage := map[string]func([]byte){
		"a flipped bit":     func(b []byte) { b[5000] ^= 4 },
		"the last byte":     func(b []byte) { b[size-1]++ },
		"a zero page":       func(b []byte) { clear(b[4096:8192]) },
		"two swapped pages": func(b []byte) { p := bytes.Clone(b[:4096]); copy(b, b[4096:8192]); copy(b[4096:], p) },
		"an older content":  func(b []byte) { Fill(b, 6) },
	}
	for name, spoil := range damage {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(good)
			spoil(b)
			if Check(b, 7) == nil {
				t.Error("not seen")
			}
		})
	}
}

// Every churn passes on a sound kernel, more than once round its ring of files and pipes.
func TestChurns(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []*Churn{NewCache(dir, 64<<10), NewSlab(dir), NewBuffers(), NewMemory()} {
		t.Run(c.Name, func(t *testing.T) {
			for n := range int64(2*bufferPipes + 1) {
				if err := c.Round(context.Background(), n); err != nil {
					t.Fatalf("round %d: %v", n, err)
				}
			}
		})
	}
}
