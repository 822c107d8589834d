// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"strings"
	"testing"
)

func FuzzIOMem(f *testing.F) {
	f.Add("00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n  01000000-01ffffff : Kernel code\n100000000-13fffffff : System RAM\n")
	f.Add("ffffffffffffffff-ffffffffffffffff : System RAM\n00000000-00000000 : System RAM\n")
	f.Fuzz(func(t *testing.T, text string) {
		ram, err := parseIOMem(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, r := range ram {
			if r.Start >= r.End {
				t.Errorf("a range from %#x to %#x", r.Start, r.End)
			}
		}
	})
}
