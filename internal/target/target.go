// SPDX-License-Identifier: Apache-2.0

// Package target has the places that a dump can go to.
//
// A Target takes one dump. How it is written is what it can do: a Random target takes bytes at any place and gives
// them back (a block device, a file); a Stream takes them one after the other and gives nothing back (a pipe, a
// connection, an object in a store). Every Target is exactly one of the two, and its Abilities say which, so nobody has
// to guess from types. Package format chooses the form of the dump by that: kdump-compressed or ELF for a Random
// target, the flattened stream for a Stream.
//
// The life of a target, whatever it is:
//
//	open -> write ... write -> Commit -> Close
//	                   \-> Abort(reason) -> Close
//
// Opening checks all that can be checked before the first byte, and writes nothing. Commit is what makes the bytes
// a dump for others; until it has returned without an error no reader may find anything at the place that
// it takes for a dump. How that is done is the target's own: a file gets its name, the other end of a
// connection acknowledges the end of the stream, an upload of parts is completed. On a block device, which has nothing
// but bytes, the writer's block 0 does it, which is written last. Abort and Close without Commit leave nothing that
// could be taken for a dump.
//
// To write a new target: implement Random or Stream, and have targettest.Run judge it in the package's own
// test. What goes between a dump and a Stream (encryption) is a Stream itself that wraps another: its Write writes
// more or fewer bytes to the inner one, its Commit ends its own part and then calls the inner Commit with the number of
// bytes it wrote there, and gives the inner Receipt back, for that is what lies at the place.
//
// Errors: no room left is unix.ENOSPC or a *kdump.TargetTooSmallError, in the chain of errors.Is; a refused place has an error of
// its own that says what to do; every other error says the place (Describe) and what was being done. No error holds
// content of the dump.
package target

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"livedump.io/internal/kdump"
)

// Abilities say what a target can do.
type Abilities struct {
	// RandomAccess: it is a Random. Otherwise it is a Stream.
	RandomAccess bool
	// Sized: what lies there has an end of its own, where Commit puts it, and what was not written reads as zeros. A
	// block device has neither. Only for a Random.
	Sized bool
	// ReadsBack: Commit reads back all that was written and tells its checksum, so that nobody else has to. Only for a
	// Random.
	ReadsBack bool
}

// Receipt is what lies at the place after Commit, as far as the target itself knows.
type Receipt struct {
	Bytes int64
	// SHA256 of these bytes. A Stream computes it of what it sent; of a Random without ReadsBack it is zeros, for who wrote it reads
	// it back.
	SHA256 [sha256.Size]byte
	// ReadBack: Commit has read what lies there, and it is what was written.
	ReadBack bool
}

// Target is a place that one dump goes to. Commit, Abort and Close are called by one goroutine at a time; Abort and Close
// may come while a write is under way, and make it end.
type Target interface {
	// Describe identifies the place for people: at most 256 bytes, nothing secret.
	Describe() string
	Abilities() Abilities
	// Commit makes what was written a dump of size bytes, from the first one on, and returns when it is on stable
	// storage. For a Stream size must be the number of bytes written. When ctx ends first, or anything fails, there is no
	// dump, and the target can only be closed. A second Commit, or one after Abort, is ErrEnded.
	Commit(ctx context.Context, size int64) (Receipt, error)
	// Abort gives the dump up and takes away what was written, as far as the place allows. After Commit, or for the second
	// time, it does nothing. The reason is for whoever waits for the dump at the other end.
	Abort(reason error) error
	// Close gives the target up; without a Commit it aborts. Closing twice is no error.
	Close() error
}

// Random takes bytes at any place. Offsets, lengths and addresses of buffers of WriteAt are multiples of 4096; WriteAt and ReadAt
// may be called from several goroutines. Writing beyond Size is an error.
type Random interface {
	Target
	kdump.Output
}

// Stream takes bytes one after the other. After an error only Abort and Close make sense. A Write may be of any
// length; most are of a record of about one MiB.
type Stream interface {
	Target
	io.Writer
}

var (
	// ErrEnded: the target was committed, aborted or closed already.
	ErrEnded = errors.New("the target has ended")
	// ErrAborted is the reason of a Close without Commit.
	ErrAborted = errors.New("given up")
)
