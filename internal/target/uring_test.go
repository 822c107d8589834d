// SPDX-License-Identifier: Apache-2.0

package target_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"livedump.io/internal/kdump"
)

const (
	writeBytes = 1 << 20
	writeRoom  = 512 << 20 // the file; writes go round
)

// BenchmarkWrites compares the ways to keep several large direct writes under way: a pool of goroutines that each wait for
// one, as the Writer has it, and io_uring with one goroutine. LIVEDUMP_BENCH_DIR is a folder on the disk to write to. It reports the
// processor time of each write besides, as that is what the dump lacks on a node.
func BenchmarkWrites(b *testing.B) {
	dir := os.Getenv("LIVEDUMP_BENCH_DIR")
	if dir == "" {
		b.Skip("LIVEDUMP_BENCH_DIR is not set")
	}
	path := filepath.Join(dir, "livedump-bench-writes")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(path)
	defer f.Close()
	buf, free, err := kdump.NewBuffer(writeBytes)
	if err != nil {
		b.Fatal(err)
	}
	defer free()
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	// Blocks that were never written cost more, the first time.
	for off := int64(0); off < writeRoom; off += writeBytes {
		if _, err := f.WriteAt(buf, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	for _, depth := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("pool/%d", depth), func(b *testing.B) {
			measure(b, func(n int) error { return writeByPool(f, buf, n, depth) })
		})
		b.Run(fmt.Sprintf("io_uring/%d", depth), func(b *testing.B) {
			r, err := newRing(uint32(depth))
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
				b.Skipf("no io_uring here: %v", err)
			}
			if err != nil {
				b.Fatal(err)
			}
			defer r.close()
			measure(b, func(n int) error { return r.writeAll(int(f.Fd()), buf, n, depth) })
		})
	}
}

func measure(b *testing.B, write func(n int) error) {
	b.SetBytes(writeBytes)
	before := processTime(b)
	b.ResetTimer()
	if err := write(b.N); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64((processTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/write")
}

func processTime(b *testing.B) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

func place(i int64) int64 { return i * writeBytes % writeRoom }

func writeByPool(f *os.File, buf []byte, n, depth int) error {
	var next atomic.Int64
	errs := make([]error, depth)
	var pool sync.WaitGroup
	for w := range errs {
		pool.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(n) {
					return
				}
				if _, errs[w] = f.WriteAt(buf, place(i)); errs[w] != nil {
					return
				}
			}
		})
	}
	pool.Wait()
	return errors.Join(errs...)
}

// The part of linux/io_uring.h that writes need.
type (
	ringOffsets struct {
		Head, Tail, RingMask, RingEntries, Flags, Dropped, Array, Resv1 uint32
		UserAddr                                                        uint64
	}
	completionOffsets struct {
		Head, Tail, RingMask, RingEntries, Overflow, CQEs, Flags, Resv1 uint32
		UserAddr                                                        uint64
	}
	ringParams struct {
		SQEntries, CQEntries, Flags, SQThreadCPU, SQThreadIdle, Features, WqFD uint32
		Resv                                                                   [3]uint32
		SQ                                                                     ringOffsets
		CQ                                                                     completionOffsets
	}
	submission struct {
		Opcode, Flags uint8
		Ioprio        uint16
		FD            int32
		Off, Addr     uint64
		Len, RWFlags  uint32
		UserData      uint64
		_             [3]uint64
	}
	completion struct {
		UserData uint64
		Res      int32
		Flags    uint32
	}
)

const (
	opWrite         = 23
	enterGetEvents  = 1
	offSQRing       = 0
	offCQRing       = 0x8000000
	offSQEs         = 0x10000000
	submissionBytes = 64
	completionBytes = 16
)

var (
	_ [submissionBytes]byte = [unsafe.Sizeof(submission{})]byte{}
	_ [completionBytes]byte = [unsafe.Sizeof(completion{})]byte{}
)

type ring struct {
	fd           int
	p            ringParams
	sq, cq, sqes []byte
}

func newRing(entries uint32) (*ring, error) {
	r := &ring{}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&r.p)), 0)
	if errno != 0 {
		return nil, errno
	}
	r.fd = int(fd)
	for _, m := range []struct {
		to  *[]byte
		off int64
		n   uint32
	}{
		{&r.sq, offSQRing, r.p.SQ.Array + 4*r.p.SQEntries},
		{&r.cq, offCQRing, r.p.CQ.CQEs + completionBytes*r.p.CQEntries},
		{&r.sqes, offSQEs, submissionBytes * r.p.SQEntries},
	} {
		var err error
		if *m.to, err = unix.Mmap(r.fd, m.off, int(m.n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
			r.close()
			return nil, err
		}
	}
	return r, nil
}

func (r *ring) close() {
	for _, m := range [][]byte{r.sq, r.cq, r.sqes} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	_ = unix.Close(r.fd)
}

func word(b []byte, off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[off])) }

// writeAll writes n times with as many writes under way as the depth.
func (r *ring) writeAll(fd int, buf []byte, n, depth int) error {
	sqTail, sqMask := word(r.sq, r.p.SQ.Tail), *word(r.sq, r.p.SQ.RingMask)
	cqHead, cqTail, cqMask := word(r.cq, r.p.CQ.Head), word(r.cq, r.p.CQ.Tail), *word(r.cq, r.p.CQ.RingMask)
	for sent, done := 0, 0; done < n; {
		fresh := 0
		for sent < n && sent-done < depth {
			tail := *sqTail
			i := tail & sqMask
			*(*submission)(unsafe.Pointer(&r.sqes[i*submissionBytes])) = submission{Opcode: opWrite, FD: int32(fd), Off: uint64(place(int64(sent))),
				Addr: uint64(uintptr(unsafe.Pointer(&buf[0]))), Len: uint32(len(buf))}
			*word(r.sq, r.p.SQ.Array+4*i) = i
			atomic.StoreUint32(sqTail, tail+1) // pairs with the kernel's read of the tail
			sent++
			fresh++
		}
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(fresh), 1, enterGetEvents, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return errno
		}
		head := *cqHead
		for ; head != atomic.LoadUint32(cqTail); head++ {
			c := (*completion)(unsafe.Pointer(&r.cq[r.p.CQ.CQEs+(head&cqMask)*completionBytes]))
			if c.Res != int32(len(buf)) {
				return fmt.Errorf("a write of %d bytes: %d", len(buf), c.Res)
			}
			done++
		}
		atomic.StoreUint32(cqHead, head)
	}
	return nil
}
