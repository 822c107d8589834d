// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"livedump.io/internal/kdump"
)

// blockBytes is the unit of all I/O. It suits every device with sectors of up to a page.
const blockBytes = 4096

// Need is what a device must have to be the target of a dump.
type Need struct {
	// Bytes that it must hold at least.
	Bytes  int64
	Policy Policy
	// Session, if not zero, is the one whose dump goes there. What it has left there itself may be overwritten, whatever
	// the policy: another process goes on with it.
	Session kdump.Session
}

// Device is a block device that passed every check, claimed exclusively and opened for direct I/O.
type Device struct {
	claim    *os.File // opened O_EXCL: nobody can mount it or build on it while this is open
	file     *os.File // for reading and writing
	identity Identity
}

// Open checks a device and claims it. It is opened for writing only when every check has passed, and nothing is
// written. The error of a refused device wraps one of the Err variables.
func Open(ctx context.Context, host Host, id ID, need Need) (*Device, error) {
	name, err := host.Name(id)
	if err != nil {
		return nil, err
	}
	// Before the claim, for errors that say more than that it is busy.
	if err := host.checkUnused(id, name); err != nil {
		return nil, err
	}
	claim, err := host.claim(ctx, id, name)
	if err != nil {
		return nil, err
	}
	d := &Device{claim: claim}
	if err := d.check(host, id, name, need); err != nil {
		claim.Close()
		return nil, err
	}
	// The same device again through the claimed file: no name is looked up any more.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", claim.Fd()), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		claim.Close()
		kind := ErrIO
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM) {
			kind = ErrReadOnly
		}
		return nil, refuse(kind, name, "open for writing: %s", err)
	}
	d.file = os.NewFile(uintptr(fd), name)
	return d, nil
}

// check runs with the device claimed, so its answers stay true.
func (d *Device) check(host Host, id ID, name string, need Need) error {
	if err := host.checkUnused(id, name); err != nil {
		return err
	}
	fd := int(d.claim.Fd())
	size, err := sizeOf(fd, name)
	if err != nil {
		return err
	}
	if err := checkSectors(fd, name); err != nil {
		return err
	}
	if err := checkSize(size, need.Bytes, name); err != nil {
		return err
	}
	if err := checkWritable(fd, name); err != nil {
		return err
	}
	c, err := readContent(&directIO{file: d.claim, size: size}, size)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !leftBy(c, need.Session) {
		if err := checkContent(c, need.Policy, name); err != nil {
			return err
		}
	}
	d.identity, err = host.identify(id, name, size)
	return err
}

// openNode opens a device through its node in the node's own /dev and makes sure that it is that device.
func (h Host) openNode(id ID, name string, flags uint64) (int, error) {
	path := "/dev/" + name
	fd, err := h.openInRoot(path, flags)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || idOf(st.Rdev) != id {
		unix.Close(fd)
		return -1, refuse(ErrNotBlock, path, "it is not the node of device %s", id)
	}
	return fd, nil
}

// flockWait is how long a short lock of somebody else (udev looking at the device) is waited for.
const flockWait = 10 * time.Second

// claim opens a device exclusively, for reading. It also takes the lock by which udev and partitioning tools leave
// a device alone.
func (h Host) claim(ctx context.Context, id ID, name string) (*os.File, error) {
	fd, err := h.openNode(id, name, unix.O_RDONLY|unix.O_EXCL|unix.O_DIRECT|unix.O_NONBLOCK)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, refuse(ErrInUse, name, "something has claimed it: a mount, swap, RAID, LVM or another dump")
	case errors.Is(err, unix.ENOENT):
		return nil, refuse(ErrNotFound, name, "the node has no /dev/%s", name)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOMEDIUM):
		return nil, refuse(ErrNotFound, name, "%s", err)
	case errors.Is(err, unix.EINVAL):
		return nil, refuse(ErrGeometry, name, "it does not take direct I/O")
	case err != nil:
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	giveUp := time.NewTimer(flockWait)
	defer giveUp.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			file.Close()
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
		select {
		case <-again.C:
		case <-giveUp.C:
			file.Close()
			return nil, refuse(ErrInUse, name, "another program keeps it locked")
		case <-ctx.Done():
			file.Close()
			return nil, ctx.Err()
		}
	}
}

func ioctlGet(fd int, request uintptr, value unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(value))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

func sizeOf(fd int, name string) (int64, error) {
	var size uint64
	if err := ioctlGet(fd, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return 0, fmt.Errorf("size of %s: %w", name, err)
	}
	return int64(size), nil
}

// checkSectors refuses sectors that our blocks are no multiple of.
func checkSectors(fd int, name string) error {
	var sector int32
	if err := ioctlGet(fd, unix.BLKSSZGET, unsafe.Pointer(&sector)); err != nil {
		return fmt.Errorf("sector size of %s: %w", name, err)
	}
	if sector <= 0 || blockBytes%sector != 0 {
		return refuse(ErrGeometry, name, "its sectors have %d bytes", sector)
	}
	return nil
}

// checkSize refuses a device that cannot hold what is needed, or that is not even a few blocks.
func checkSize(size, need int64, name string) error {
	if size < 16*blockBytes {
		return refuse(ErrTooSmall, name, "it has %d bytes", size)
	}
	if size < need {
		return refuse(ErrTooSmall, name, "it has %d bytes, %d are needed at least", size, need)
	}
	return nil
}

// checkWritable asks the kernel whether the device is set read-only.
func checkWritable(fd int, name string) error {
	var readOnly int32
	if err := ioctlGet(fd, unix.BLKROGET, unsafe.Pointer(&readOnly)); err != nil {
		return fmt.Errorf("whether %s is read-only: %w", name, err)
	}
	if readOnly != 0 {
		return refuse(ErrReadOnly, name, "its read-only flag is set")
	}
	return nil
}

// Identity of the device.
func (d *Device) Identity() Identity { return d.identity }

// Size in bytes, rounded down to whole blocks of 4096.
func (d *Device) Size() int64 { return d.identity.Size &^ (blockBytes - 1) }

// ReadAt implements io.ReaderAt.
func (d *Device) ReadAt(p []byte, offset int64) (int, error) {
	return (&directIO{file: d.file, size: d.identity.Size}).ReadAt(p, offset)
}

// WriteAt implements io.WriterAt. Offset, length and address of p must be multiples of 4096. Writing past the end
// is ErrTooSmall.
func (d *Device) WriteAt(p []byte, offset int64) (int, error) {
	if !aligned(p, offset) {
		return 0, fmt.Errorf("%s: writing %d bytes at %d: not aligned to %d", d.identity.Name, len(p), offset, blockBytes)
	}
	if offset < 0 || offset+int64(len(p)) > d.Size() {
		return 0, refuse(ErrTooSmall, d.identity.Name, "writing %d bytes at %d, but it has %d", len(p), offset, d.Size())
	}
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(int(d.file.Fd()), p[done:], offset+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return done, fmt.Errorf("%s: %w: writing at %d: %w", d.identity.Name, ErrIO, offset+int64(done), err)
		}
		done += n
	}
	return done, nil
}

// Sync returns when what was written is on stable storage.
func (d *Device) Sync() error {
	if err := d.file.Sync(); err != nil {
		return fmt.Errorf("%s: %w: sync: %w", d.identity.Name, ErrIO, err)
	}
	return nil
}

// Close gives the device up.
func (d *Device) Close() error {
	err := d.file.Close()
	if cerr := d.claim.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%s: close: %w", d.identity.Name, err)
	}
	return nil
}

func aligned(p []byte, offset int64) bool {
	return len(p) > 0 && len(p)%blockBytes == 0 && offset%blockBytes == 0 &&
		uintptr(unsafe.Pointer(&p[0]))%blockBytes == 0
}

// directIO reads a file opened with O_DIRECT. What is not aligned goes through an aligned buffer.
type directIO struct {
	file *os.File
	size int64
}

func (d *directIO) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("%s: reading at %d", d.file.Name(), offset)
	}
	if offset >= d.size {
		return 0, io.EOF
	}
	want := p
	if int64(len(want)) > d.size-offset {
		want = want[:d.size-offset]
	}
	if len(want) == 0 {
		return 0, nil
	}
	var n int
	var err error
	if aligned(want, offset) {
		n, err = d.readAligned(want, offset)
	} else {
		start := offset &^ (blockBytes - 1)
		end := (offset + int64(len(want)) + blockBytes - 1) &^ (blockBytes - 1)
		var bounce []byte
		bounce, err = unix.Mmap(-1, 0, int(end-start), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return 0, fmt.Errorf("a buffer of %d bytes: %w", end-start, err)
		}
		defer unix.Munmap(bounce)
		var got int
		got, err = d.readAligned(bounce, start)
		if skip := int(offset - start); got > skip {
			n = copy(want, bounce[skip:got])
		}
		if n == len(want) {
			err = nil
		}
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// readAligned reads until p is full or the device ends. The last block may be short.
func (d *directIO) readAligned(p []byte, offset int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(int(d.file.Fd()), p[done:], offset+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, fmt.Errorf("%s: %w: reading at %d: %w", d.file.Name(), ErrIO, offset+int64(done), err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
		if n%blockBytes != 0 && done < len(p) {
			return done, io.EOF
		}
	}
	return done, nil
}
