// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Scratch is room for what a Writer does not keep in memory while it writes to a target that cannot be read
// back. It holds no content of pages.
type Scratch interface {
	Output
	Close() error
}

// ScratchIn opens scratch files in a folder. They have no name, so nothing of them stays.
func ScratchIn(dir string) func(room int64) (Scratch, error) {
	return func(room int64) (Scratch, error) {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("in %s: %w", dir, err)
		}
		return scratchFile{os.NewFile(uintptr(fd), dir+" (scratch)"), room}, nil
	}
}

// OpenScratch opens one in the folder for temporary files.
func OpenScratch(room int64) (Scratch, error) { return ScratchIn(os.TempDir())(room) }

type scratchFile struct {
	*os.File
	room int64
}

func (s scratchFile) Size() int64 { return s.room }
