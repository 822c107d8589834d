// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"livedump.io/internal/blockdev/blockdevtest"
	"livedump.io/internal/kdump"
)

const mib = 1 << 20

func resolve(t *testing.T, path string) ID {
	t.Helper()
	id, err := LocalHost.Resolve(path)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func open(t *testing.T, path string, need Need) (*Device, error) {
	t.Helper()
	d, err := Open(context.Background(), LocalHost, resolve(t, path), need)
	if err == nil {
		t.Cleanup(func() { d.Close() })
	}
	return d, err
}

// refused opens a device that must be refused, and makes sure that it was not touched.
func refused(t *testing.T, path, file string, need Need, want error) {
	t.Helper()
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, path, need); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	} else {
		t.Log(err)
	}
	unix.Sync()
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("the refused device was written to")
	}
}

func write(t *testing.T, path string, offset int64, data string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(data), offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func alignedBuffer(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

func TestEmptyDevice(t *testing.T) {
	path, file := blockdevtest.Loop(t, 8*mib)
	d, err := open(t, path, Need{Bytes: 8 * mib, Policy: Never})
	if err != nil {
		t.Fatal(err)
	}
	if d.Size() != 8*mib {
		t.Errorf("size %d", d.Size())
	}
	i := d.Identity()
	if i.Name != filepath.Base(path) || i.ID != resolve(t, path) || !strings.Contains(i.String(), file) {
		t.Errorf("identity %s", i)
	}

	// While it is claimed nobody else gets it, not even this process.
	if _, err := open(t, path, Need{Policy: Never}); !errors.Is(err, ErrInUse) {
		t.Errorf("second claim: got %v, want %v", err, ErrInUse)
	}
	if err := unix.Mount(path, t.TempDir(), "ext4", 0, ""); !errors.Is(err, unix.EBUSY) {
		t.Errorf("mounting a claimed device: got %v, want EBUSY", err)
	}

	b := alignedBuffer(t, 64<<10)
	for i := range b {
		b[i] = byte(i % 251)
	}
	if n, err := d.WriteAt(b, 8*mib-int64(len(b))); n != len(b) || err != nil {
		t.Fatalf("wrote %d: %v", n, err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	onDisk, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(onDisk[8*mib-len(b):], b) {
		t.Error("the file does not hold what was written")
	}
	got := make([]byte, 1000) // neither aligned nor a multiple of anything
	if n, err := d.ReadAt(got, 8*mib-int64(len(b))+777); n != len(got) || err != nil {
		t.Fatalf("read %d: %v", n, err)
	}
	if !bytes.Equal(got, b[777:1777]) {
		t.Error("read something else than was written")
	}
	if n, err := d.ReadAt(got, 8*mib-500); n != 500 || !errors.Is(err, io.EOF) {
		t.Errorf("reading over the end: %d, %v", n, err)
	}
	if _, err := d.WriteAt(b, 8*mib-4096); !errors.Is(err, ErrTooSmall) {
		t.Errorf("writing over the end: %v", err)
	}
	if _, err := d.WriteAt(b[1:4097], 0); err == nil {
		t.Error("an unaligned write was accepted")
	}
}

func TestNotBlockDevice(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, dir, "/dev/null"} {
		if _, err := LocalHost.Resolve(path); !errors.Is(err, ErrNotBlock) {
			t.Errorf("%s: got %v, want %v", path, err, ErrNotBlock)
		}
	}
	if _, err := LocalHost.Resolve(filepath.Join(dir, "missing")); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want %v", err, ErrNotFound)
	}
}

func TestGoneDevice(t *testing.T) {
	_, err := Open(context.Background(), LocalHost, ID{Major: 4095, Minor: 77}, Need{})
	if !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v, want %v", err, ErrNotFound)
	}
}

func TestTooSmall(t *testing.T) {
	path, file := blockdevtest.Loop(t, 8*mib)
	refused(t, path, file, Need{Bytes: 8*mib + 1, Policy: Never}, ErrTooSmall)
}

func TestTiny(t *testing.T) {
	path, file := blockdevtest.Loop(t, 4096)
	refused(t, path, file, Need{Policy: Never}, ErrTooSmall)
}

func TestReadOnly(t *testing.T) {
	path, file := blockdevtest.Loop(t, 8*mib)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 1); err != nil {
		t.Fatal(err)
	}
	defer unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 0)
	refused(t, path, file, Need{Policy: Never}, ErrReadOnly)
}

// tool finds a program that makes what a test needs.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/sbin", "/usr/sbin", "/bin", "/usr/bin"} {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode()&0o111 != 0 {
			return p
		}
	}
	t.Skipf("%s is not installed", name)
	return ""
}

func runTool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// TestMounted mounts in the mount namespace of the test, so it looks at its own mount table.
func TestMounted(t *testing.T) {
	mkfs := tool(t, "mkfs.ext4")
	path, file := blockdevtest.Loop(t, 16*mib)
	runTool(t, mkfs, "-q", path)
	point := filepath.Join(t.TempDir(), "a b")
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(path, point, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Error(err)
		}
	})
	refused(t, path, file, Need{Policy: Never}, ErrMounted)

	// From a mount namespace that does not show the mount, the claim tells.
	h := Host{Root: "/", Sys: "/sys", Proc: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(h.Proc, "1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.Proc, "1/mountinfo"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), h, resolve(t, path), Need{}); !errors.Is(err, ErrInUse) {
		t.Errorf("mounted elsewhere: got %v, want %v", err, ErrInUse)
	}

	// A loop device on top of it sees the use below through the claim as well.
	over := blockdevtest.LoopOver(t, path, 0)
	if _, err := open(t, over, Need{Policy: Never}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("a file system below: got %v, want %v", err, ErrNotEmpty)
	}
}

// TestLoopOnTop is what the kubelet does with a block volume: a loop device on the device, as a lock only. It must be no
// obstacle, unless somebody uses that loop device.
func TestLoopOnTop(t *testing.T) {
	mkfs := tool(t, "mkfs.ext4")
	path, file := blockdevtest.Loop(t, 16*mib)
	over := blockdevtest.LoopOver(t, path, 0)
	loops, err := LocalHost.loopsOver([]ID{resolve(t, path)})
	if err != nil {
		t.Fatal(err)
	}
	if len(loops) != 1 || loops[0] != resolve(t, over) {
		t.Errorf("loop devices on top: %v, want %v", loops, resolve(t, over))
	}
	d, err := Open(context.Background(), LocalHost, resolve(t, path), Need{Policy: Never})
	if err != nil {
		t.Fatalf("the kubelet's lock is in the way: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	runTool(t, mkfs, "-q", over)
	point := t.TempDir()
	if err := unix.Mount(over, point, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Error(err)
		}
	})
	refused(t, path, file, Need{Policy: Never}, ErrMounted)
}

func TestSwap(t *testing.T) {
	mkswap := tool(t, "mkswap")
	path, file := blockdevtest.Loop(t, 16*mib)
	runTool(t, mkswap, path)
	refused(t, path, file, Need{Policy: IfEmptyOrLiveDump}, ErrNotEmpty)
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	if errno := swap(unix.SYS_SWAPON, name); errno != 0 {
		t.Skipf("cannot use swap here: %v", errno)
	}
	t.Cleanup(func() {
		if errno := swap(unix.SYS_SWAPOFF, name); errno != 0 {
			t.Errorf("swapoff: %v", errno)
		}
	})
	refused(t, path, file, Need{Policy: IfEmptyOrLiveDump}, ErrSwap)
}

func TestPartitioned(t *testing.T) {
	path, file := blockdevtest.Loop(t, 16*mib)
	// One Linux partition, from sector 2048, of 4096 sectors.
	mbr := make([]byte, 512)
	copy(mbr[446:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0})
	mbr[510], mbr[511] = 0x55, 0xaa
	write(t, path, 0, string(mbr))
	// The kernel does not know of the partition yet.
	refused(t, path, file, Need{Policy: IfEmptyOrLiveDump}, ErrNotEmpty)

	scanned := blockdevtest.LoopOver(t, file, unix.LO_FLAGS_PARTSCAN)
	id := resolve(t, scanned)
	fam, err := LocalHost.family(id)
	if err != nil {
		t.Fatal(err)
	}
	if len(fam.partitions) != 1 {
		t.Skipf("this kernel made no partition: %v", fam.partitions)
	}
	if _, err := open(t, scanned, Need{Policy: IfEmptyOrLiveDump}); !errors.Is(err, ErrPartitioned) {
		t.Errorf("got %v, want %v", err, ErrPartitioned)
	}
	// The partition itself may be used; its disk is looked at too.
	part, err := LocalHost.family(fam.partitions[0])
	if err != nil {
		t.Fatal(err)
	}
	if part.disk == nil || *part.disk != id {
		t.Errorf("disk of the partition: %v, want %v", part.disk, id)
	}
}

// TestLeftByLivedump: what livedump itself left is accepted by one policy and not by the other.
func TestLeftByLivedump(t *testing.T) {
	path, file := blockdevtest.Loop(t, 8*mib)
	d, err := Open(context.Background(), LocalHost, resolve(t, path), Need{Policy: Never})
	if err != nil {
		t.Fatal(err)
	}
	if err := kdump.MarkFailed(d, kdump.Session{1, 2, 3}, errors.New("test")); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	refused(t, path, file, Need{Policy: Never}, ErrNotEmpty)
	d, err = Open(context.Background(), LocalHost, resolve(t, path), Need{Policy: IfEmptyOrLiveDump})
	if err != nil {
		t.Fatalf("the mark of a failed dump: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// Something was written over it that left most of block 0 alone.
	write(t, path, 2000, "x")
	refused(t, path, file, Need{Policy: IfEmptyOrLiveDump}, ErrNotEmpty)
}

// A device that another one is built on, by the real device mapper.
func TestHeld(t *testing.T) {
	path, file := blockdevtest.Loop(t, 8*mib)
	blockdevtest.Linear(t, path, 8*mib)
	refused(t, path, file, Need{Policy: Never}, ErrHeld)
	// The kernel's own lock says the same to whoever does not look at the holders.
	h := LocalHost
	h.Sys = sysWithoutHolders(t, path)
	if _, err := Open(context.Background(), h, resolve(t, path), Need{Policy: Never}); !errors.Is(err, ErrInUse) {
		t.Errorf("without a look at the holders: got %v, want %v", err, ErrInUse)
	}
}

// sysWithoutHolders is a sysfs that knows one device, and nothing that is built on it.
func sysWithoutHolders(t *testing.T, device string) string {
	t.Helper()
	sys := t.TempDir()
	dir := filepath.Join(sys, "dev/block", resolve(t, device).String())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "uevent"), []byte("DEVNAME="+filepath.Base(device)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return sys
}

// Between finding a device and opening it, its node may come to be that of another device.
func TestWrongDeviceBehindTheNode(t *testing.T) {
	meant, meantFile := blockdevtest.Loop(t, 8*mib)
	other, otherFile := blockdevtest.Loop(t, 8*mib)
	h := LocalHost
	h.Root = t.TempDir()
	if err := os.Mkdir(filepath.Join(h.Root, "dev"), 0o700); err != nil {
		t.Fatal(err)
	}
	id := resolve(t, other)
	if err := unix.Mknod(filepath.Join(h.Root, "dev", filepath.Base(meant)), unix.S_IFBLK|0o600, int(unix.Mkdev(id.Major, id.Minor))); err != nil {
		t.Fatal(err)
	}
	if _, err := h.openNode(resolve(t, meant), filepath.Base(meant), unix.O_RDONLY); !errors.Is(err, ErrNotBlock) || !strings.Contains(err.Error(), "is not the node of") {
		t.Errorf("opening the node: %v", err)
	}
	if d, err := Open(context.Background(), h, resolve(t, meant), Need{Policy: Never}); err == nil {
		d.Close()
		t.Error("a device was opened by the node of another one")
	}
	for _, file := range []string{meantFile, otherFile} {
		if content, err := os.ReadFile(file); err != nil || len(bytes.TrimLeft(content, "\x00")) != 0 {
			t.Errorf("%s was written to (%v)", file, err)
		}
	}
}

// Somebody who has claimed the device without mounting it, and somebody who only keeps it locked.
func TestClaimedByAnother(t *testing.T) {
	path, file := blockdevtest.Loop(t, 8*mib)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, path, file, Need{Policy: IfEmptyOrLiveDump}, ErrInUse)
	unix.Close(fd)
	d, err := open(t, path, Need{Policy: IfEmptyOrLiveDump})
	if err != nil {
		t.Errorf("after it was given up: %v", err)
	} else if err := d.Close(); err != nil {
		t.Error(err)
	}
}
