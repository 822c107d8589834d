// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Identity is what tells a device from all others.
type Identity struct {
	// Name of the kernel, as in /dev; it may change with a reboot.
	Name string
	ID   ID
	// Size in bytes.
	Size int64
	// Serial is the serial number, WWN or device-mapper UUID; empty if the device has none.
	Serial string
	// ByID is the name under /dev/disk/by-id; empty without one.
	ByID string
}

// maxIdentity is the room for an identity in the API.
const maxIdentity = 256

// String fits in the status of a LiveDump.
func (i Identity) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "/dev/%s (%s, %d bytes", i.Name, i.ID, i.Size)
	if i.Serial != "" {
		fmt.Fprintf(&b, ", serial %s", i.Serial)
	}
	if i.ByID != "" {
		fmt.Fprintf(&b, ", by-id %s", i.ByID)
	}
	b.WriteString(")")
	s := b.String()
	if len(s) > maxIdentity {
		s = s[:maxIdentity]
	}
	return s
}

// serialFiles are where drivers show what identifies a device, the disk's own directory being the start.
var serialFiles = []string{"serial", "device/serial", "wwid", "device/wwid", "dm/uuid", "md/uuid", "loop/backing_file"}

func (h Host) identify(id ID, name string, size int64) (Identity, error) {
	i := Identity{Name: name, ID: id, Size: size}
	dir, err := filepath.EvalSymlinks(h.sysfs(id))
	if err != nil {
		return i, fmt.Errorf("identity of %s: %w", name, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir) // a partition is found by the serial number of its disk
	}
	for _, f := range serialFiles {
		text, err := os.ReadFile(filepath.Join(dir, f))
		if s := printable(strings.TrimSpace(string(text))); err == nil && s != "" {
			i.Serial = s
			break
		}
	}
	// Without udev there is no by-id directory.
	const byID = "/dev/disk/by-id"
	names, err := h.readDirInRoot(byID)
	if err == nil {
		slices.Sort(names)
		for _, n := range names {
			st, err := h.statInRoot(path.Join(byID, n))
			if err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && idOf(st.Rdev) == id {
				i.ByID = printable(n)
				break
			}
		}
	}
	return i, nil
}

// printable keeps what a device says of itself fit for status and logs.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
