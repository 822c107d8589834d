// SPDX-License-Identifier: Apache-2.0

// Package format writes a dump to a target in one of the forms that crash, drgn and makedumpfile read.
package format

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"livedump.io/internal/kdump"
	"livedump.io/internal/kernelmem"
	"livedump.io/internal/target"
)

// ErrFormat: the target does not take that format.
var ErrFormat = errors.New("unfit format")

// Format is the form of a dump.
type Format uint8

const (
	// Natural is the form that suits the target: Kdump for a target that takes bytes at any place, Flattened for a stream.
	Natural Format = iota
	// Kdump is kdump-compressed, version 6.
	Kdump
	// Flattened is kdump-compressed as the flattened stream of makedumpfile.
	Flattened
	// ELF is an ELF vmcore: without compression, in a file with holes.
	ELF
)

var names = [...]string{"", "kdump", "flattened", "elf"}

// ParseFormat takes a name in any case; no name is Natural.
func ParseFormat(name string) (Format, error) {
	for i, n := range names {
		if strings.EqualFold(n, name) {
			return Format(i), nil
		}
	}
	return 0, fmt.Errorf("unknown format %q: it is one of %s", name, strings.Join(names[1:], ", "))
}

// String says what the format is, as reports have it.
func (f Format) String() string {
	switch f {
	case Kdump:
		return "kdump-compressed v6"
	case Flattened:
		return "kdump-compressed v6, flattened"
	case ELF:
		return "ELF vmcore"
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

// For is the format that a dump to the target really gets, or an error if the target cannot take the one that is asked for.
func (f Format) For(t target.Target) (Format, error) {
	random := t.Abilities().RandomAccess
	if _, ok := t.(*target.Parts); ok {
		if f != Natural && f != Kdump {
			return 0, fmt.Errorf("%w: only a kdump-compressed dump can be split among several targets", ErrFormat)
		}
		return Kdump, nil
	}
	switch {
	case f == Natural && random:
		return Kdump, nil
	case f == Natural:
		return Flattened, nil
	case f != Flattened && !random:
		return 0, fmt.Errorf("%w: %s takes bytes one after the other, so it can only be flattened", ErrFormat, t.Describe())
	case f != Kdump && random && !t.Abilities().Sized:
		return 0, fmt.Errorf("%w: %s is no file, so it can only be kdump", ErrFormat, t.Describe())
	}
	return f, nil
}

// MaxRoom is the room, in bytes, with which a dump of this many pages fits whatever they contain (but for 16 bytes for each run of
// lost pages). Of an ELF vmcore most of it is holes.
func (f Format) MaxRoom(maxPFN, pages uint64, notesBytes int) (int64, error) {
	if f == ELF {
		return kdump.ELFRoom(maxPFN, pages, notesBytes)
	}
	room, err := kdump.MaxSize(maxPFN, pages, notesBytes)
	if f == Flattened {
		room += room/1024 + 1<<20 // 16 bytes for each record, and the beginning
	}
	return room, err
}

// Writer turns a target into a dump. Add may be called from several goroutines; Abort at any time, from any.
type Writer interface {
	Add(pages []kdump.PageRef, data []byte) error
	// Finish makes the target a dump and commits it. The summary has the size and the checksum of what lies there.
	Finish(ctx context.Context) (kdump.Summary, error)
	// Abort gives up; the target holds no dump then. It does not close the target.
	Abort(reason error) error
	Progress() kdump.Progress
}

// Journaled is a Writer whose dump another process can go on with; see kdump.Writer for its methods. Whether it is one, its
// Journaled says.
type Journaled interface {
	Writer
	Journaled() bool
	SaveState(state []byte) error
	Seal(state []byte) error
	Leave()
}

// Resumable says whether another process can go on with a dump to the target: a plain one on a device. A file that was not
// committed is no place to find again, and the key of an encrypted dump dies with the process.
func (f Format) Resumable(t target.Target) bool {
	if _, ok := t.(kdump.Spiller); ok {
		return false
	}
	_, random := t.(target.Random)
	return f == Kdump && random && !t.Abilities().Sized
}

// Resume goes on with a dump from what another process has left on the target.
func Resume(t target.Random, j *kdump.Journal, opts kdump.Options) (Writer, error) {
	w, err := kdump.Resume(j, opts)
	if err != nil {
		return nil, err
	}
	return &onRandom{Writer: w, t: t, session: j.Meta.Session}, nil
}

// NewWriter begins a dump in a format that For has said the target takes.
func NewWriter(t target.Target, f Format, meta kdump.Meta, opts kdump.Options) (Writer, error) {
	f, err := f.For(t)
	if err != nil {
		return nil, err
	}
	if parts, ok := t.(*target.Parts); ok {
		return newSplit(parts, meta, opts)
	}
	random, _ := t.(target.Random)
	if f != Flattened {
		opts.NoReadBack = opts.NoReadBack || t.Abilities().ReadsBack
		var w *kdump.Writer
		if f == ELF {
			w, err = kdump.NewELFWriter(random, meta, opts, kernelmem.Mappings)
		} else {
			w, err = kdump.NewWriter(random, meta, opts)
		}
		if err != nil {
			return nil, err
		}
		return &onRandom{Writer: w, t: random, session: meta.Session}, nil
	}
	stream, _ := t.(target.Stream)
	if random != nil {
		if stream, err = target.NewAppender(random); err != nil {
			return nil, err
		}
	}
	c := &counter{Stream: stream}
	w, err := kdump.NewFlattenedWriter(c, meta, opts)
	if err != nil {
		return nil, err
	}
	return &onStream{Writer: w, t: c}, nil
}

// onRandom is a dump on a target that is read back before it is committed.
type onRandom struct {
	*kdump.Writer
	t       target.Random
	session kdump.Session
	// half: it was written to its last byte, and is not committed.
	half atomic.Bool
}

func (w *onRandom) Finish(ctx context.Context) (kdump.Summary, error) {
	s, err := w.Writer.Finish(ctx)
	if err != nil {
		return s, err
	}
	w.half.Store(true)
	r, err := w.t.Commit(ctx, int64(s.Bytes))
	if err != nil {
		return s, err
	}
	w.half.Store(false)
	if w.t.Abilities().ReadsBack {
		s.Bytes, s.SHA256, s.ReadBack = uint64(r.Bytes), r.SHA256, r.ReadBack
	}
	return s, nil
}

// Abort marks what was written already, for the Writer has done its work by then: on a device it is a dump to every reader.
func (w *onRandom) Abort(reason error) error {
	errs := []error{w.Writer.Abort(reason)}
	if w.half.Swap(false) {
		errs = append(errs, kdump.MarkFailed(w.t, w.session, reason))
	}
	return errors.Join(append(errs, w.t.Abort(reason))...)
}

// onStream is a dump that is sent away.
type onStream struct {
	*kdump.Writer
	t *counter
}

func (w *onStream) Finish(ctx context.Context) (kdump.Summary, error) {
	// A write that waits for the other end would not hear of the end of ctx.
	stop := context.AfterFunc(ctx, func() { _ = w.t.Abort(context.Cause(ctx)) })
	defer stop()
	s, err := w.Writer.Finish(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err) // the write that was cut off for it may be heard of first
	}
	if err != nil {
		return s, err
	}
	r, err := w.t.Commit(ctx, w.t.bytes.Load())
	s.Bytes, s.SHA256, s.ReadBack = uint64(r.Bytes), r.SHA256, r.ReadBack
	return s, err
}

// Abort tells the target first, for the Writer waits for writes that are under way.
func (w *onStream) Abort(reason error) error {
	w.Fail(reason)
	return errors.Join(w.t.Abort(reason), w.Writer.Abort(reason))
}

// counter counts what was written.
type counter struct {
	target.Stream
	bytes atomic.Int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.Stream.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}
