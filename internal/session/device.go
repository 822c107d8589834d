// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is the Session of the real kernel module.
type Device struct {
	file       *os.File
	notesBytes uint64
	// prepared: there is a session to thaw. The kernel answers a THAW without one with an error.
	prepared atomic.Bool
}

var _ Session = (*Device)(nil)

// Open opens the device node of the module. ErrNoDevice, ErrNotPermitted, ErrBusy.
func Open(path string) (*Device, error) {
	return OpenWith(func() (*os.File, error) { return os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0) })
}

// OpenWith is Open for a node that the caller knows how to open.
func OpenWith(open func() (*os.File, error)) (*Device, error) {
	f, err := open()
	if err == nil {
		return &Device{file: f}, nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return nil, fmt.Errorf("%w: %w", errnoError(stepOpen, errno), err)
	}
	return nil, fmt.Errorf("livedump session: open: %w", err)
}

// ioctl runs a request. A signal (the Go runtime sends them to its own threads) only means trying again.
func (d *Device) ioctl(s step, request uintptr, arg unsafe.Pointer) error {
	conn, err := d.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("livedump session: %s: %w", s, err)
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		for {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
			if errno != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return fmt.Errorf("livedump session: %s: %w", s, err)
	}
	if errno != 0 {
		return errnoError(s, errno)
	}
	return nil
}

// Prepare implements Session.
func (d *Device) Prepare(o Options) (Prepared, error) {
	a := &abiPrepare{
		ABIVersion:   abiVersion,
		Exclude:      uint32(o.Level),
		Mode:         uint32(o.Mode),
		ReserveBytes: o.ReserveBytes,
		UUID:         o.UUID,
	}
	a.Size = uint32(unsafe.Sizeof(*a))
	if o.Deadline > 0 {
		// 0 would mean the module's own default.
		a.DeadlineMS = max(1, uint64(o.Deadline.Milliseconds()))
	}
	a.CalibrateMS = uint32(min(o.Calibrate.Milliseconds(), math.MaxUint32))
	a.ExpectedMS = uint32(min(o.Expected.Milliseconds(), math.MaxUint32))
	if o.Keep {
		a.Flags |= prepareKeep
	}
	if o.Acks {
		a.Flags |= prepareAck
	}
	if o.Grace > 0 {
		a.GraceMS = uint32(min(max(1, o.Grace.Milliseconds()), math.MaxUint32))
	}
	if err := d.ioctl(stepPrepare, iocPrepare, unsafe.Pointer(a)); err != nil {
		if r := Refusal(a.Refusal); r != RefusalNone {
			err = &RefusedError{Refusal: r, err: err}
		}
		return Prepared{}, err
	}
	d.prepared.Store(true)
	return a.result(), nil
}

func (a *abiPrepare) result() Prepared {
	return Prepared{
		MaxPFN:        a.MaxPFN,
		RAMPages:      a.RAMPages,
		ReservePages:  a.ReservePages,
		OverheadBytes: a.OverheadBytes,
		EstimatePages: uint64(a.EstimatePages),
		Took:          nanoseconds(a.PrepareNS),
	}
}

// Takeover implements Session.
func (d *Device) Takeover(uuid [16]byte) (Taken, error) {
	a := &abiTakeover{UUID: uuid}
	a.Size = uint32(unsafe.Sizeof(*a))
	if err := d.ioctl(stepTakeover, iocTakeover, unsafe.Pointer(a)); err != nil {
		return Taken{}, err
	}
	d.prepared.Store(true)
	d.notesBytes = a.Freeze.NotesBytes
	p := &a.Prepare
	return Taken{
		Options: Options{
			Level: DumpLevel(p.Exclude), Mode: Mode(p.Mode), ReserveBytes: p.ReserveBytes, UUID: p.UUID,
			Deadline: time.Duration(a.DeadlineMS) * time.Millisecond,
			Grace:    time.Duration(p.GraceMS) * time.Millisecond, Keep: p.Flags&prepareKeep != 0,
			Acks: p.Flags&prepareAck != 0,
		},
		Prepared:      p.result(),
		Frozen:        a.Freeze.result(),
		PagesReported: a.PagesReported,
		FrozenFor:     time.Duration(p.DeadlineMS-min(a.DeadlineMS, p.DeadlineMS)) * time.Millisecond,
	}, nil
}

// Freeze implements Session.
func (d *Device) Freeze() (Frozen, error) {
	a := &abiFreeze{}
	a.Size = uint32(unsafe.Sizeof(*a))
	if err := d.ioctl(stepFreeze, iocFreeze, unsafe.Pointer(a)); err != nil {
		if errors.Is(err, ErrStopFailed) {
			if st, serr := d.Stats(); serr == nil {
				err = fmt.Errorf("%w: CPUs %v after %d attempts", err, cpuList(st.MissingCPUs), st.StopAttempts)
			}
		}
		return Frozen{}, err
	}
	d.notesBytes = a.NotesBytes
	return a.result(), nil
}

func (a *abiFreeze) result() Frozen {
	f := Frozen{
		CPUs:        int(a.NrCPUs),
		Stop:        nanoseconds(a.StopNS),
		Classify:    nanoseconds(a.ClassifyNS),
		NotesBytes:  a.NotesBytes,
		PagesToDump: a.PagesToDump,
		At:          time.Unix(0, int64(a.RealtimeNS)),
	}
	copy(f.ClassPages[:], a.ClassPages[:])
	return f
}

// Notes implements Session.
func (d *Device) Notes() (Notes, error) {
	if d.notesBytes == 0 {
		return Notes{}, errors.New("livedump session: notes: not frozen")
	}
	buf := make([]byte, d.notesBytes)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&buf[0])
	a := &abiNotes{Buf: uint64(uintptr(unsafe.Pointer(&buf[0]))), BufBytes: uint64(len(buf))}
	a.Size = uint32(unsafe.Sizeof(*a))
	if err := d.ioctl(stepNotes, iocNotes, unsafe.Pointer(a)); err != nil {
		return Notes{}, err
	}
	if a.BufBytes > uint64(len(buf)) || a.VMCoreInfoOffset > a.BufBytes ||
		a.VMCoreInfoBytes > a.BufBytes-a.VMCoreInfoOffset {
		return Notes{}, fmt.Errorf("livedump session: notes: the module reports VMCOREINFO at %d+%d in %d bytes of notes",
			a.VMCoreInfoOffset, a.VMCoreInfoBytes, a.BufBytes)
	}
	u := func(i int) string {
		s := a.Utsname[i][:]
		if end := bytes.IndexByte(s, 0); end >= 0 {
			s = s[:end]
		}
		return string(s)
	}
	return Notes{
		Data:             buf[:a.BufBytes],
		VMCoreInfoOffset: a.VMCoreInfoOffset,
		VMCoreInfoBytes:  a.VMCoreInfoBytes,
		Utsname: Utsname{Sysname: u(0), Nodename: u(1), Release: u(2), Version: u(3), Machine: u(4),
			Domainname: u(5)},
	}, nil
}

// Next implements Session.
func (d *Device) Next(data []byte, pages []Page) (int, error) {
	if len(pages) == 0 || len(pages) > MaxBatch || len(data) < len(pages)*PageSize {
		return 0, fmt.Errorf("livedump session: next: %d pages into %d bytes: want 1 to %d pages and %d bytes for each",
			len(pages), len(data), MaxBatch, PageSize)
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&data[0])
	pin.Pin(&pages[0])
	a := &abiNext{
		MaxPages: uint32(len(pages)),
		Buf:      uint64(uintptr(unsafe.Pointer(&data[0]))),
		Pages:    uint64(uintptr(unsafe.Pointer(&pages[0]))),
	}
	a.Size = uint32(unsafe.Sizeof(*a))
	if err := d.ioctl(stepNext, iocNext, unsafe.Pointer(a)); err != nil {
		if errors.Is(err, unix.ENODATA) {
			if st, serr := d.Stats(); serr == nil && st.Failure != FailureNone {
				return 0, st.Failure.Err()
			}
		}
		return 0, err
	}
	if a.NrPages > uint32(len(pages)) {
		return 0, fmt.Errorf("livedump session: next: the module reports %d pages of %d asked for", a.NrPages, len(pages))
	}
	return int(a.NrPages), nil
}

// Acknowledge implements Session.
func (d *Device) Acknowledge(pages []Page) error {
	if len(pages) == 0 {
		return nil
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&pages[0])
	a := &abiAck{NrPages: uint32(len(pages)), Pages: uint64(uintptr(unsafe.Pointer(&pages[0])))}
	a.Size = uint32(unsafe.Sizeof(*a))
	return d.ioctl(stepAcknowledge, iocAck, unsafe.Pointer(a))
}

// Stats implements Session.
func (d *Device) Stats() (Stats, error) {
	a := &abiStats{}
	a.Size = uint32(unsafe.Sizeof(*a))
	if err := d.ioctl(stepStats, iocStats, unsafe.Pointer(a)); err != nil {
		return Stats{}, err
	}
	s := Stats{
		State:          State(a.State),
		Failure:        Failure(a.Failure),
		StopAttempts:   a.StopAttempts,
		Stop:           nanoseconds(a.StopNS),
		Rendezvous:     nanoseconds(a.RendezvousNS),
		CopiesTook:     nanoseconds(a.CopiesNS),
		Entries:        nanoseconds(a.EntriesNS),
		Flush:          nanoseconds(a.FlushNS),
		EntriesPUD:     a.EntriesPUD,
		EntriesPMD:     a.EntriesPMD,
		EntriesPTE:     a.EntriesPTE,
		StopCopies:     a.StopCopies,
		Faults:         a.Faults,
		FaultCopies:    a.FaultCopies,
		FaultPushdowns: a.FaultPushdowns,
		FaultSplits:    a.FaultSplits,
		FaultExcluded:  a.FaultExcluded,
		Copies:         a.Copies,
		ReservePages:   a.ReservePages,
		ReserveLow:     a.ReserveLow,
		LostPages:      a.LostPages,
		UncoveredPages: a.UncoveredPages,
		PagesToDump:    a.PagesToDump,
		PagesReported:  a.PagesReported,
		MissingCPUs:    a.MissingCPUs,
		TablesSplit:    a.TablesSplit,
		TablesJoined:   a.TablesJoined,
		Thaw:           nanoseconds(a.ThawNS),
		Registers:      nanoseconds(a.RegistersNS),
		PagesAcked:     a.PagesAcked,
		PageTables:     a.PageTables,
		Unwatched:      Unwatched(a.Unwatched),
		DMAPages:       a.DMAPages, DMADevices: a.DMADevices, DMADevicesUnknown: a.DMAUnknown,
	}
	copy(s.ClassPages[:], a.ClassPages[:])
	return s, nil
}

// Thaw implements Session.
func (d *Device) Thaw() error {
	if !d.prepared.Load() {
		return nil
	}
	err := d.ioctl(stepThaw, iocThaw, nil)
	if err != nil {
		// The deadline may have been first.
		if st, serr := d.Stats(); serr == nil && st.State == StateThawed {
			return nil
		}
	}
	return err
}

// Close implements Session.
func (d *Device) Close() error {
	if err := d.file.Close(); err != nil {
		return fmt.Errorf("livedump session: close: %w", err)
	}
	return nil
}

func nanoseconds(n uint64) time.Duration { return time.Duration(n) }

// cpuList names the CPUs of a mask.
func cpuList(mask uint64) []int {
	var cpus []int
	for cpu := range 64 {
		if mask&(1<<cpu) != 0 {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}
