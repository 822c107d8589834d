// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"errors"
	"fmt"
	"io"
)

// Errors of the Writer.
var (
	// ErrTargetTooSmall: the dump does not fit. The error is a *TargetTooSmallError.
	ErrTargetTooSmall = errors.New("target too small")
	// ErrPagesMissing: Finish was called before all pages of the session had been given.
	ErrPagesMissing = errors.New("pages missing")
	// ErrDuplicatePage: a page was given twice.
	ErrDuplicatePage = errors.New("page given twice")
	// ErrReadBack: what was read back from the target is not what was written to it.
	ErrReadBack = errors.New("read-back differs from what was written")
	// ErrAborted: the Writer was aborted, or has finished.
	ErrAborted = errors.New("dump aborted")
)

// TargetTooSmallError says how much room a dump needs. Bytes.
type TargetTooSmallError struct {
	Needed    int64
	Available int64
	// Estimated says that Needed is a projection from the pages written so far.
	Estimated bool
}

func (e *TargetTooSmallError) Error() string {
	about := "at least"
	if e.Estimated {
		about = "about"
	}
	return fmt.Sprintf("%v: %s %d bytes are needed, %d are there", ErrTargetTooSmall, about, e.Needed, e.Available)
}

// Is makes errors.Is(err, ErrTargetTooSmall) true.
func (e *TargetTooSmallError) Is(target error) bool { return target == ErrTargetTooSmall }

// WriteError is a failed write to the target.
type WriteError struct {
	Offset int64
	Length int
	Err    error
}

func (e *WriteError) Error() string {
	return fmt.Sprintf("writing %d bytes at %d to the target: %v", e.Length, e.Offset, e.Err)
}

func (e *WriteError) Unwrap() error { return e.Err }

// Errors of the Reader.
var (
	// ErrNotDump: this is no kdump-compressed dump. The message says what it is, if that is known.
	ErrNotDump = errors.New("not a dump")
	// ErrInProgress: livedump is writing a dump here, or died while it did.
	ErrInProgress = errors.New("dump in progress")
	// ErrFailed: livedump gave up writing a dump here.
	ErrFailed = errors.New("dump failed")
	// ErrVersion: a version or variant of the format that this program does not know.
	ErrVersion = errors.New("unsupported version")
	// ErrTruncated: the file ends before the dump does.
	ErrTruncated = errors.New("truncated")
	// ErrDamaged: the dump contradicts itself or its checksums.
	ErrDamaged = errors.New("damaged")
	// ErrExcluded: the page is RAM, but was left out of the dump.
	ErrExcluded = errors.New("page is not in the dump")
	// ErrNotRAM: there is no RAM at that page frame.
	ErrNotRAM = errors.New("page is not RAM")
)

func unexpectedEOF(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
