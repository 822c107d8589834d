// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// checkUnused runs the checks for use by anybody else on a device and on everything that shares its blocks: its
// partitions, its disk, and loop devices on top of it. (The kubelet keeps a loop device on a block volume only as a
// lock on the file; such a loop device has no user of its own and is no obstacle.)
func (h Host) checkUnused(id ID, name string) error {
	fam, err := h.family(id)
	if err != nil {
		return err
	}
	if err := checkNoPartitions(fam, name); err != nil {
		return err
	}
	ids := fam.all()
	loops, err := h.loopsOver(ids)
	if err != nil {
		return err
	}
	for _, loop := range loops {
		loopFamily, err := h.family(loop)
		if err != nil {
			return err
		}
		ids = append(ids, loopFamily.all()...)
	}
	if err := h.checkNotMounted(ids, name); err != nil {
		return err
	}
	if err := h.checkNotSwap(ids, name); err != nil {
		return err
	}
	return h.checkNoHolders(ids, name)
}

// checkNoPartitions refuses a device that the kernel has partitions of.
func checkNoPartitions(f family, name string) error {
	if len(f.partitions) > 0 {
		return refuse(ErrPartitioned, name, "%d partitions: %v", len(f.partitions), f.partitions)
	}
	return nil
}

// checkNotMounted looks for the devices in the node's mount table. The source is compared too, since btrfs
// and others show a made-up device number.
func (h Host) checkNotMounted(ids []ID, name string) error {
	wanted := map[ID]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	table := filepath.Join(h.Proc, "1/mountinfo")
	err := readLines(table, func(line string) error {
		m, err := parseMount(line)
		if err != nil {
			return err
		}
		used := m.id
		if !wanted[used] && strings.HasPrefix(m.source, "/") {
			if st, err := h.statInRoot(m.source); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
				used = idOf(st.Rdev)
			}
		}
		if wanted[used] {
			return refuse(ErrMounted, name, "%s (%s) is mounted on %s", m.source, used, m.point)
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, ErrMounted) {
			return err
		}
		return fmt.Errorf("looking for %s in %s: %w", name, table, err)
	}
	return nil
}

// mount is what the checks need of a line of mountinfo.
type mount struct {
	id            ID
	point, source string
}

// parseMount reads a line: mount id, parent, major:minor, root, mount point, options, optional fields, "-",
// type, source, ...
func parseMount(line string) (mount, error) {
	fields := strings.Fields(line)
	for i := 6; i+2 < len(fields); i++ {
		if fields[i] != "-" {
			continue
		}
		id, err := parseID(fields[2])
		if err != nil {
			return mount{}, err
		}
		return mount{id: id, point: unescape(fields[4]), source: unescape(fields[i+2])}, nil
	}
	return mount{}, fmt.Errorf("a line that is not understood: %q", line)
}

// unescape undoes the kernel's octal escapes of blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		var c int
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := fmt.Sscanf(s[i+1:i+4], "%03o", &c); err == nil && n == 1 {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// checkNotSwap looks for the devices among the node's swap areas. The kernel prints paths as the reader sees
// them, which in a container may lack their beginning, so the last component counts as well.
func (h Host) checkNotSwap(ids []ID, name string) error {
	wanted, names := map[ID]bool{}, map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
		if n, err := h.Name(id); err == nil {
			names[filepath.Base(n)] = true
		}
	}
	table := filepath.Join(h.Proc, "swaps")
	header := true
	err := readLines(table, func(line string) error {
		fields := strings.Fields(line)
		if header || len(fields) < 2 {
			header = false
			return nil
		}
		area := unescape(fields[0])
		used := fields[1] == "partition" && names[filepath.Base(area)]
		if st, err := h.statInRoot(area); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && wanted[idOf(st.Rdev)] {
			used = true
		}
		if used {
			return refuse(ErrSwap, name, "swap area %s", area)
		}
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without swap
	}
	if err != nil {
		if errors.Is(err, ErrSwap) {
			return err
		}
		return fmt.Errorf("looking for %s in %s: %w", name, table, err)
	}
	return nil
}

// checkNoHolders refuses a device on which the kernel has built another one.
func (h Host) checkNoHolders(ids []ID, name string) error {
	for _, id := range ids {
		entries, err := os.ReadDir(filepath.Join(h.sysfs(id), "holders"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("holders of %s: %w", name, err)
		}
		var holders []string
		for _, e := range entries {
			holders = append(holders, e.Name())
		}
		if len(holders) > 0 {
			return refuse(ErrHeld, name, "%s is used by %s", id, strings.Join(holders, ", "))
		}
	}
	return nil
}

// loopsOver gives the loop devices whose backing file is one of the devices. sysfs shows only a path, which may
// belong to another mount namespace; the loop device itself knows the device number.
func (h Host) loopsOver(ids []ID) ([]ID, error) {
	wanted := map[ID]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	bound, err := filepath.Glob(filepath.Join(h.Sys, "block/loop*/loop"))
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	var found []ID
	for _, dir := range bound {
		loop, err := readID(filepath.Join(filepath.Dir(dir), "dev"))
		if err != nil {
			return nil, fmt.Errorf("loop devices: %w", err)
		}
		name, err := h.Name(loop)
		if err != nil {
			return nil, fmt.Errorf("loop devices: %w", err)
		}
		fd, err := h.openNode(loop, name, unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("loop devices: %w", err)
		}
		info, err := unix.IoctlLoopGetStatus64(fd)
		unix.Close(fd)
		if errors.Is(err, unix.ENXIO) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("loop device %s: %w", name, err)
		}
		if info.Rdevice != 0 && wanted[idOf(info.Rdevice)] {
			found = append(found, loop)
		}
	}
	return found, nil
}
