// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What the kernel module can answer. Every error of a Session wraps one of them, or the plain errno.
var (
	// ErrNoDevice: the module is not loaded or its device node is missing.
	ErrNoDevice = errors.New("no livedump device")
	// ErrNotPermitted: the caller lacks CAP_SYS_ADMIN in the first user namespace.
	ErrNotPermitted = errors.New("not permitted to open the livedump device")
	// ErrLockedDown: kernel lockdown forbids reading kernel memory.
	ErrLockedDown = errors.New("kernel lockdown forbids reading kernel memory")
	// ErrBusy: another session exists.
	ErrBusy = errors.New("another livedump session exists")
	// ErrUnsupported: this kernel or machine cannot be dumped; the kernel log has the reason.
	ErrUnsupported = errors.New("this kernel or machine cannot be dumped (the kernel log has the reason)")
	// ErrNoMemory: not enough free memory for the reserve.
	ErrNoMemory = errors.New("not enough free memory on the node for the reserve")
	// ErrStopFailed: a CPU did not arrive in time; nothing was changed.
	ErrStopFailed = errors.New("a CPU could not be held")
	// ErrReserveExhausted: the reserve is used up.
	ErrReserveExhausted = errors.New("the reserve is used up")
	// ErrDeadlineExceeded: the session's deadline passed and the kernel thawed it.
	ErrDeadlineExceeded = errors.New("the session's deadline passed")
	// ErrMachineGoesDown: a reboot began, and the kernel thawed the session first.
	ErrMachineGoesDown = errors.New("the machine goes down")
	// ErrNoSession: there is nothing to take over: the session ended, or there never was one.
	ErrNoSession = errors.New("there is no session to take over")
	// ErrOtherSession: the session that there is has another UUID.
	ErrOtherSession = errors.New("the session that there is has another UUID")
	// ErrOwnerAlive: the session has an owner, or is not frozen yet.
	ErrOwnerAlive = errors.New("the session has an owner")
	// ErrABI: module and agent do not speak the same version of the interface.
	ErrABI = errors.New("the loaded module does not understand this agent (other ABI version)")
)

// step is an ioctl; the same errno means different things in different steps.
type step string

const (
	stepOpen    step = "open"
	stepPrepare step = "prepare"
	stepFreeze  step = "freeze"
	stepNotes   step = "notes"
	stepNext    step = "next"
	stepStats   step = "stats"
	stepThaw    step = "thaw"

	stepTakeover    step = "takeover"
	stepAcknowledge step = "acknowledge"
)

// errnoError gives the errno of a step its meaning.
func errnoError(s step, errno unix.Errno) error {
	var kind error
	switch errno {
	case unix.ENOENT, unix.ENXIO, unix.ENODEV:
		switch {
		case s == stepOpen:
			kind = ErrNoDevice
		case s == stepTakeover && errno == unix.ENOENT:
			kind = ErrOtherSession
		}
	case unix.ESRCH:
		if s == stepTakeover {
			kind = ErrNoSession
		}
	case unix.EPERM, unix.EACCES:
		kind = ErrLockedDown
		if s == stepOpen {
			kind = ErrNotPermitted
		}
	case unix.EBUSY:
		kind = ErrBusy
		if s == stepTakeover {
			kind = ErrOwnerAlive
		}
	case unix.EOPNOTSUPP:
		kind = ErrUnsupported
	case unix.ENOMEM:
		kind = ErrNoMemory
	case unix.EAGAIN:
		if s == stepFreeze {
			kind = ErrStopFailed
		}
	case unix.ENOSPC:
		if s == stepFreeze {
			kind = ErrReserveExhausted
		}
	case unix.ETIMEDOUT:
		kind = ErrDeadlineExceeded
	case unix.EINVAL:
		if s == stepPrepare {
			kind = ErrABI
		}
	case unix.ENOTTY:
		kind = ErrABI
	}
	if kind == nil {
		return fmt.Errorf("livedump session: %s: %w", s, errno)
	}
	return fmt.Errorf("livedump session: %s: %w (%w)", s, kind, errno)
}

// Err is the error of a failed session: ErrReserveExhausted or ErrDeadlineExceeded. It is nil for FailureNone.
func (f Failure) Err() error {
	switch f {
	case FailureNone:
		return nil
	case FailureReserve:
		return fmt.Errorf("livedump session: %w", ErrReserveExhausted)
	case FailureDeadline:
		return fmt.Errorf("livedump session: %w", ErrDeadlineExceeded)
	case FailureReboot:
		return fmt.Errorf("livedump session: %w", ErrMachineGoesDown)
	}
	return fmt.Errorf("livedump session: it failed (%s)", f)
}
