// SPDX-License-Identifier: Apache-2.0

package format

import (
	"context"
	"errors"
	"sync/atomic"

	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
)

// newSplit begins a dump that is split among the parts of a target.
func newSplit(t *target.Parts, meta kdump.Meta, opts kdump.Options) (Writer, error) {
	outs := make([]kdump.Output, len(t.Parts))
	for i, p := range t.Parts {
		outs[i] = p
		opts.NoReadBack = opts.NoReadBack || p.Abilities().ReadsBack
	}
	w, err := kdump.NewSplitWriter(outs, meta, opts)
	if err != nil {
		return nil, err
	}
	return &onParts{SplitWriter: w, t: t, session: meta.Session}, nil
}

// onParts is a split dump. What was committed of it when something fails is of no use without the rest: every reader wants all
// parts.
type onParts struct {
	*kdump.SplitWriter
	t       *target.Parts
	session kdump.Session
	// half: every part was written, and not every one is committed.
	half atomic.Bool
}

func (w *onParts) Finish(ctx context.Context) (kdump.Summary, error) {
	s, err := w.SplitWriter.Finish(ctx)
	if err != nil {
		return s, err
	}
	w.half.Store(true)
	readBack := true
	for i, p := range w.t.Parts {
		r, err := p.Commit(ctx, int64(s.Parts[i].Bytes))
		if err != nil {
			return s, err
		}
		if p.Abilities().ReadsBack {
			s.Bytes += uint64(r.Bytes) - s.Parts[i].Bytes
			s.Parts[i].Bytes, s.Parts[i].SHA256, s.Parts[i].ReadBack = uint64(r.Bytes), r.SHA256, r.ReadBack
		}
		readBack = readBack && s.Parts[i].ReadBack
	}
	s.ReadBack = readBack
	w.half.Store(false)
	return s, nil
}

// Abort marks what was written already, for the SplitWriter has done its work by then.
func (w *onParts) Abort(reason error) error {
	errs := []error{w.SplitWriter.Abort(reason)}
	if w.half.Swap(false) {
		for _, p := range w.t.Parts {
			errs = append(errs, kdump.MarkFailed(p, w.session, reason))
		}
	}
	return errors.Join(append(errs, w.t.Abort(reason))...)
}
