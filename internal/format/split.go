// SPDX-License-Identifier: Apache-2.0

package format

import (
	"context"
	"errors"

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
	return &onParts{SplitWriter: w, t: t}, nil
}

// onParts is a split dump. What was committed of it when something fails is of no use without the rest: every reader wants all
// parts.
type onParts struct {
	*kdump.SplitWriter
	t *target.Parts
}

func (w *onParts) Finish(ctx context.Context) (kdump.Summary, error) {
	s, err := w.SplitWriter.Finish(ctx)
	if err != nil {
		return s, err
	}
	for i, p := range w.t.Parts {
		r, err := p.Commit(ctx, int64(s.Parts[i].Bytes))
		if err != nil {
			return s, errors.Join(err, w.t.Abort(err))
		}
		if p.Abilities().ReadsBack {
			s.Bytes += uint64(r.Bytes) - s.Parts[i].Bytes
			s.Parts[i].Bytes, s.Parts[i].SHA256 = uint64(r.Bytes), r.SHA256
		}
	}
	return s, nil
}

func (w *onParts) Abort(reason error) error {
	return errors.Join(w.SplitWriter.Abort(reason), w.t.Abort(reason))
}
