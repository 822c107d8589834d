// SPDX-License-Identifier: Apache-2.0

// Command init is PID 1 of a test guest. It sets the guest up as its kernel
// command line says and then only collects dead processes; the commands of the
// host are served by a child of it (see serve.go), so that waiting for one
// process cannot take away the exit status of another.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	var err error
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		err = serve()
	} else {
		err = boot()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest init:", err)
	}
	// PID 1 must not return: that is a kernel panic, which would hide the reason.
	if os.Getpid() == 1 {
		unix.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	os.Exit(1)
}

func boot() error {
	options := kernelOptions()
	if err := mountBasics(); err != nil {
		return err
	}
	if err := loadModules("/etc/guest/modules"); err != nil {
		return err
	}
	if disk := options["guest.root"]; disk != "" {
		if err := switchRoot(disk); err != nil {
			return fmt.Errorf("change to the root on %s: %w", disk, err)
		}
	}
	if err := mountRest(); err != nil {
		return err
	}
	if name := options["guest.hostname"]; name != "" {
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("set the hostname: %w", err)
		}
	}
	if err := installBusybox(); err != nil {
		return err
	}
	if err := network(options["guest.ip"] != ""); err != nil {
		return err
	}

	child := exec.Command("/proc/self/exe", "serve")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := child.Start(); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		if pid == child.Process.Pid {
			return fmt.Errorf("the server ended: %v", status)
		}
	}
}

// kernelOptions returns the name=value words of the kernel command line.
func kernelOptions() map[string]string {
	options := map[string]string{}
	// /proc is needed for that and for /proc/self/exe.
	_ = os.MkdirAll("/proc", 0o755)
	_ = unix.Mount("proc", "/proc", "proc", 0, "")
	b, _ := os.ReadFile("/proc/cmdline")
	for _, word := range strings.Fields(string(b)) {
		name, value, _ := strings.Cut(word, "=")
		options[name] = value
	}
	return options
}

func mount(source, target, fstype, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	err := unix.Mount(source, target, fstype, 0, data)
	if err != nil && err != unix.EBUSY {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

// mountBasics mounts what loading modules and finding disks takes.
func mountBasics() error {
	for _, m := range [][3]string{{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"devtmpfs", "/dev", "devtmpfs"}} {
		if err := mount(m[0], m[1], m[2], ""); err != nil {
			return err
		}
	}
	return nil
}

// mountRest mounts what programs expect of a running system.
func mountRest() error {
	for _, m := range [][4]string{
		{"devpts", "/dev/pts", "devpts", "ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", ""},
		{"tmpfs", "/run", "tmpfs", "mode=0755"},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", ""},
		{"securityfs", "/sys/kernel/security", "securityfs", ""},
		{"debugfs", "/sys/kernel/debug", "debugfs", ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", ""},
		{"bpf", "/sys/fs/bpf", "bpf", ""},
	} {
		// A kernel without one of these file systems has no place for it in sysfs.
		if _, err := os.Stat(m[1]); strings.HasPrefix(m[1], "/sys/") && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := mount(m[0], m[1], m[2], m[3]); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !os.IsExist(err) {
			return err
		}
	}
	// Container runtimes want shared propagation; the kernel starts private.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

// loadModules loads the modules that a file lists, a path a line, in order.
func loadModules(list string) error {
	b, err := os.ReadFile(list)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(b)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	return nil
}

// switchRoot makes the ext4 file system on disk the root, as switch_root does.
func switchRoot(disk string) error {
	if err := waitForDevice(disk); err != nil {
		return err
	}
	const root = "/newroot"
	if err := mount(disk, root, "ext4", ""); err != nil {
		return err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, root+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	// The initramfs's files would hold memory for as long as the guest lives.
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if path := "/" + e.Name(); path != root {
			_ = os.RemoveAll(path)
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return unix.Chdir("/")
}

// installBusybox links busybox's applets that the root does not have already.
func installBusybox() error {
	const busybox = "/bin/busybox"
	if _, err := os.Stat(busybox); err != nil {
		return nil
	}
	out, err := exec.Command(busybox, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("list busybox's applets: %w", err)
	}
	for _, applet := range strings.Fields(string(out)) {
		name := filepath.Base(applet)
		if found(name) {
			continue
		}
		path := "/" + applet
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(busybox, path); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// path is where programs are looked for, here and by the commands of the host.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func found(name string) bool {
	for _, dir := range strings.Split(path, ":") {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// network brings up the loopback and, with user networking, the interface with
// the address that QEMU's user network gives the first guest.
func network(user bool) error {
	commands := [][]string{{"ip", "link", "set", "lo", "up"}}
	if user {
		commands = append(commands,
			[]string{"ip", "addr", "add", "10.0.2.15/24", "dev", "eth0"},
			[]string{"ip", "link", "set", "eth0", "up"},
			[]string{"ip", "route", "add", "default", "via", "10.0.2.2"})
	}
	for _, argv := range commands {
		if _, err := os.Stat("/bin/busybox"); err != nil {
			return nil
		}
		if out, err := exec.Command("/bin/busybox", argv...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
		}
	}
	return nil
}
