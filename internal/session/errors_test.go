// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestErrnoMeaning(t *testing.T) {
	for _, tc := range []struct {
		step  step
		errno unix.Errno
		want  error
	}{
		{stepOpen, unix.ENOENT, ErrNoDevice},
		{stepOpen, unix.ENXIO, ErrNoDevice},
		{stepOpen, unix.EPERM, ErrNotPermitted},
		{stepOpen, unix.EBUSY, ErrBusy},
		{stepPrepare, unix.EPERM, ErrLockedDown},
		{stepPrepare, unix.EBUSY, ErrBusy},
		{stepPrepare, unix.EOPNOTSUPP, ErrUnsupported},
		{stepPrepare, unix.ENOMEM, ErrNoMemory},
		{stepPrepare, unix.EINVAL, ErrABI},
		{stepPrepare, unix.ENOTTY, ErrABI},
		{stepTakeover, unix.ESRCH, ErrNoSession},
		{stepTakeover, unix.ENOENT, ErrOtherSession},
		{stepTakeover, unix.EBUSY, ErrOwnerAlive},
		{stepFreeze, unix.EAGAIN, ErrStopFailed},
		{stepFreeze, unix.ENOSPC, ErrReserveExhausted},
	} {
		err := errnoError(tc.step, tc.errno)
		if !errors.Is(err, tc.want) || !errors.Is(err, tc.errno) {
			t.Errorf("%s %s: got %q, want it to be %q and the errno", tc.step, tc.errno, err, tc.want)
		}
	}
	if err := errnoError(stepNext, unix.ESRCH); errors.Is(err, ErrNoSession) {
		t.Errorf("ESRCH of next is %q", err)
	}
	// The same errno elsewhere must not be taken for these.
	if err := errnoError(stepNotes, unix.ENOSPC); errors.Is(err, ErrReserveExhausted) {
		t.Errorf("ENOSPC of notes is %q", err)
	}
	if err := errnoError(stepNext, unix.EAGAIN); errors.Is(err, ErrStopFailed) {
		t.Errorf("EAGAIN of next is %q", err)
	}
	if err := FailureReserve.Err(); !errors.Is(err, ErrReserveExhausted) {
		t.Errorf("got %q", err)
	}
	if err := FailureDeadline.Err(); !errors.Is(err, ErrDeadlineExceeded) {
		t.Errorf("got %q", err)
	}
}

func TestOpenWithoutModule(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "livedump"))
	if !errors.Is(err, ErrNoDevice) {
		t.Fatalf("got %v, want %v", err, ErrNoDevice)
	}
}

// TestOtherDevice: a device that is not ours answers our ioctls with ENOTTY.
func TestOtherDevice(t *testing.T) {
	d, err := Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Prepare(Options{}); !errors.Is(err, ErrABI) {
		t.Fatalf("got %v, want %v", err, ErrABI)
	}
	if err := d.Thaw(); err != nil {
		t.Errorf("thaw of what is not prepared: %v", err)
	}
}

func TestBuffer(t *testing.T) {
	if _, err := NewBuffer(MaxBatch + 1); err == nil {
		t.Error("a batch larger than the module allows was accepted")
	}
	b, err := NewBuffer(16)
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Data) != 16*PageSize || len(b.Pages) != 16 {
		t.Errorf("%d bytes and %d pages", len(b.Data), len(b.Pages))
	}
	if err := b.Free(); err != nil {
		t.Error(err)
	}
	if err := b.Free(); err != nil {
		t.Errorf("second free: %v", err)
	}
}

func TestDumped(t *testing.T) {
	for class, want := range map[Class]bool{ClassKernel: true, ClassCache: false, ClassUser: false, ClassFree: false,
		ClassOffline: false, ClassHwpoison: false, ClassSelf: false, ClassUnmapped: false} {
		if got := class.Dumped(ExcludeAll); got != want {
			t.Errorf("%s at level 31: %v", class, got)
		}
	}
	for class, want := range map[Class]bool{ClassKernel: true, ClassCache: true, ClassCachePrivate: true, ClassUser: true,
		ClassHugetlb: true, ClassFree: true, ClassOffline: false, ClassSelf: false} {
		if got := class.Dumped(ExcludeZero); got != want {
			t.Errorf("%s at level 1: %v", class, got)
		}
	}
	if ClassCachePrivate.Dumped(ExcludeCache) != true {
		t.Error("level 2 leaves out private cache")
	}
}

func TestRefused(t *testing.T) {
	for r := RefusalSession; r <= RefusalMemory; r++ {
		err := error(&RefusedError{Refusal: r, err: errnoError(stepPrepare, unix.EOPNOTSUPP)})
		if !errors.Is(err, ErrUnsupported) || !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("%q is neither of its causes", err)
		}
		if _, ok := refusals[r]; !ok || !strings.Contains(err.Error(), refusals[r]) {
			t.Errorf("refusal %d: %q does not say why", r, err)
		}
	}
}
