// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"fmt"
	"io"
)

// cpioWriter writes the "newc" archive that the kernel unpacks as its first
// root. Every member is owned by root and dated zero.
type cpioWriter struct {
	w     io.Writer
	inode int
	err   error
}

const (
	cpioDir     = 0o040000
	cpioRegular = 0o100000
	cpioLink    = 0o120000
	cpioChar    = 0o020000
)

// header starts a member whose content is size bytes, which the caller copies
// with content. rdev is major, minor of a device node.
func (c *cpioWriter) header(name string, mode uint32, size int64, major, minor int) {
	c.inode++
	links := 1
	if mode&cpioDir == cpioDir && mode&cpioRegular != cpioRegular {
		links = 2
	}
	c.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, len(name)+1, 0)
	c.printf("%s\x00", name)
	c.pad(int64(110 + len(name) + 1))
}

func (c *cpioWriter) content(r io.Reader, size int64) {
	if c.err != nil {
		return
	}
	n, err := io.CopyN(c.w, r, size)
	if err != nil {
		c.err = fmt.Errorf("after %d of %d bytes: %w", n, size, err)
		return
	}
	c.pad(size)
}

func (c *cpioWriter) close() error {
	c.header("TRAILER!!!", 0, 0, 0, 0)
	return c.err
}

func (c *cpioWriter) printf(format string, args ...any) {
	if c.err == nil {
		_, c.err = fmt.Fprintf(c.w, format, args...)
	}
}

// pad fills up to a multiple of four bytes after n bytes.
func (c *cpioWriter) pad(n int64) {
	if rest := n % 4; rest != 0 {
		c.printf("%s", "\x00\x00\x00"[:4-rest])
	}
}
