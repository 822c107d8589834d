// SPDX-License-Identifier: Apache-2.0

package target

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"livedump.io/internal/kdump"
)

// TestFileFolderNotSynced: whether a file has its name after a crash is not known, so it has none when Commit says that it failed.
func TestFileFolderNotSynced(t *testing.T) {
	dir := t.TempDir()
	f, err := CreateFile(filepath.Join(dir, "dump"), FileOptions{Room: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, free, err := kdump.NewBuffer(kdump.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer free()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	// Files can be renamed in a folder that is open like this, and it cannot be synced.
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.dir.Close(); err != nil {
		t.Fatal(err)
	}
	f.dir = os.NewFile(uintptr(fd), dir)
	if _, err := f.Commit(context.Background(), kdump.PageSize); !errors.Is(err, unix.EBADF) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("in the folder: %v, %v", left, err)
	}
}
