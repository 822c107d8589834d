// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/module"
	"livedump.io/internal/session"
	"livedump.io/internal/stream"
	"livedump.io/internal/target/object"
)

// Causes with which the caller ends a dump's context.
var (
	// ErrCanceled: the user does not want the dump any more.
	ErrCanceled = errors.New("canceled")
	// ErrDeadline: the time of the dump is over.
	ErrDeadline = errors.New("the dump took longer than it was given")
	// ErrShutdown: the agent has to end.
	ErrShutdown = errors.New("the agent was stopped and its grace period ended before the dump did")
)

// reasons say which of the API's reasons an error has; the first that matches counts. An error that the user can act
// on comes before what it may have caused.
var reasons = []struct {
	err    error
	reason string
}{
	{ErrCanceled, v1alpha1.ReasonCanceled},
	{ErrShutdown, v1alpha1.ReasonAgentLost},
	{ErrLost, v1alpha1.ReasonAgentLost},
	{ErrUnreported, v1alpha1.ReasonAgentLost},
	{ErrDeadline, v1alpha1.ReasonDeadlineExceeded},
	{context.DeadlineExceeded, v1alpha1.ReasonDeadlineExceeded},
	{context.Canceled, v1alpha1.ReasonCanceled},

	{blockdev.ErrTooSmall, v1alpha1.ReasonTargetTooSmall},
	{kdump.ErrTargetTooSmall, v1alpha1.ReasonTargetTooSmall},
	{blockdev.ErrNotFound, v1alpha1.ReasonTargetNotFound},
	{blockdev.ErrNotBlock, v1alpha1.ReasonTargetInvalid},
	{blockdev.ErrGeometry, v1alpha1.ReasonTargetInvalid},
	{blockdev.ErrNotMount, v1alpha1.ReasonTargetInvalid},
	{blockdev.ErrInMemory, v1alpha1.ReasonTargetInvalid},
	{blockdev.ErrReadOnly, v1alpha1.ReasonTargetInvalid},
	{blockdev.ErrMounted, v1alpha1.ReasonTargetInUse},
	{blockdev.ErrSwap, v1alpha1.ReasonTargetInUse},
	{blockdev.ErrHeld, v1alpha1.ReasonTargetInUse},
	{blockdev.ErrInUse, v1alpha1.ReasonTargetInUse},
	{blockdev.ErrPartitioned, v1alpha1.ReasonTargetNotEmpty},
	{blockdev.ErrNotEmpty, v1alpha1.ReasonTargetNotEmpty},

	{module.ErrNotFound, v1alpha1.ReasonModuleNotFound},
	{module.ErrLockedDown, v1alpha1.ReasonLockedDown},
	{module.ErrUnsupported, v1alpha1.ReasonUnsupportedKernel},
	{module.ErrNoMemory, v1alpha1.ReasonOutOfMemory},
	{module.ErrRejected, v1alpha1.ReasonModuleRejected},
	{module.ErrInUse, v1alpha1.ReasonModuleRejected},

	{session.ErrLockedDown, v1alpha1.ReasonLockedDown},
	{session.ErrUnsupported, v1alpha1.ReasonUnsupportedKernel},
	{session.ErrNoMemory, v1alpha1.ReasonOutOfMemory},
	{session.ErrStopFailed, v1alpha1.ReasonStopFailed},
	{session.ErrReserveExhausted, v1alpha1.ReasonReserveExhausted},
	{session.ErrDeadlineExceeded, v1alpha1.ReasonDeadlineExceeded},
	{session.ErrMachineGoesDown, v1alpha1.ReasonNodeRebooted},
	{session.ErrABI, v1alpha1.ReasonModuleRejected},
	{session.ErrBusy, v1alpha1.ReasonNodeBusy},
	{session.ErrNotPermitted, v1alpha1.ReasonNotPermitted},

	{kdump.ErrReadBack, v1alpha1.ReasonVerifyFailed},
	{blockdev.ErrIO, v1alpha1.ReasonIOError},
	{unix.ENOSPC, v1alpha1.ReasonTargetTooSmall},
	{object.ErrDenied, v1alpha1.ReasonTargetInvalid},
	{object.ErrCertificate, v1alpha1.ReasonTargetInvalid},
	{object.ErrNoBucket, v1alpha1.ReasonTargetNotFound},
	{object.ErrTooLarge, v1alpha1.ReasonTargetTooSmall},
	{object.ErrUnreachable, v1alpha1.ReasonIOError},
	{object.ErrStore, v1alpha1.ReasonIOError},
	{stream.ErrCertificates, v1alpha1.ReasonTargetInvalid},
	{stream.ErrProtocol, v1alpha1.ReasonTargetInvalid},
	{stream.ErrReceiver, v1alpha1.ReasonIOError},
	{stream.ErrIncomplete, v1alpha1.ReasonIOError},
	{stream.ErrConnect, v1alpha1.ReasonTargetNotFound},
	{format.ErrFormat, v1alpha1.ReasonTargetWrongMode},
}

// Reason of the API for an error of Dump.
func Reason(err error) string {
	if before := (*failedBefore)(nil); errors.As(err, &before) {
		return before.reason()
	}
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	if we := (*kdump.WriteError)(nil); errors.As(err, &we) {
		return v1alpha1.ReasonIOError
	}
	return v1alpha1.ReasonInternalError
}

// IsModuleError says whether the module could not be loaded.
func IsModuleError(err error) bool {
	for _, kind := range []error{module.ErrNotFound, module.ErrLockedDown, module.ErrUnsupported, module.ErrNoMemory,
		module.ErrRejected} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// ofModule says whether it was the module, or its loading, that failed.
func ofModule(err error) bool {
	if IsModuleError(err) {
		return true
	}
	for _, kind := range []error{session.ErrLockedDown, session.ErrUnsupported, session.ErrNoMemory, session.ErrStopFailed,
		session.ErrReserveExhausted, session.ErrDeadlineExceeded, session.ErrMachineGoesDown} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
