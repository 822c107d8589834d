// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"slices"
	"testing"
)

func TestCountList(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-3": 4, "0-1,4,6-7": 5} {
		if n, err := countList(list); err != nil || n != want {
			t.Errorf("countList(%q) = %d, %v; want %d", list, n, err, want)
		}
	}
	for _, list := range []string{"", "0-", "a"} {
		if n, err := countList(list); err == nil {
			t.Errorf("countList(%q) = %d; want an error", list, n)
		}
	}
}

func TestNUMAArgs(t *testing.T) {
	got := numaArgs(Config{NUMANodes: 2, MemoryMiB: 1025, CPUs: 3})
	want := []string{
		"-object", "memory-backend-ram,id=node0,size=512M", "-numa", "node,nodeid=0,memdev=node0,cpus=0-0",
		"-object", "memory-backend-ram,id=node1,size=513M", "-numa", "node,nodeid=1,memdev=node1,cpus=1-2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("numaArgs: %q; want %q", got, want)
	}
	if got := numaArgs(Config{MemoryMiB: 1024, CPUs: 2}); len(got) != 0 {
		t.Errorf("numaArgs without nodes: %q", got)
	}
}
