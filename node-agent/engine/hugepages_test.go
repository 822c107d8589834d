// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestRefuseHugePages(t *testing.T) {
	before, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_THP_DISABLE, uintptr(before), 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := RefuseHugePages(); err != nil {
		t.Fatal(err)
	}
	if after, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0); err != nil || after != 1 {
		t.Errorf("the process's setting is %d, %v; want 1", after, err)
	}
}
