// SPDX-License-Identifier: Apache-2.0

package target

import (
	"strings"
	"testing"
)

type named struct{ Random }

func (named) Describe() string { return "/dev/disk" }

// However many parts there are, their names fit into what a target may say of itself.
func TestPartsDescribe(t *testing.T) {
	two := &Parts{Parts: []Random{named{}, named{}}}
	if got, want := two.Describe(), "/dev/disk + /dev/disk"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	many := &Parts{}
	for range 200 {
		many.Parts = append(many.Parts, named{})
	}
	got := many.Describe()
	if len(got) != maxLabel || !strings.HasPrefix(got, two.Describe()) {
		t.Errorf("%d parts are described by %d bytes: %q", len(many.Parts), len(got), got)
	}
}
