// SPDX-License-Identifier: Apache-2.0

package target

import (
	"context"
	"errors"
	"strings"
)

// Parts is several Random targets for one dump that is split among them. It is neither a Random nor a Stream: who
// writes to it writes to its parts, and commits each with its own size.
type Parts struct{ Parts []Random }

// RandomsOf are the places of a target that bytes can be written to anywhere: the target itself, its parts, or none.
func RandomsOf(t Target) []Random {
	switch t := t.(type) {
	case *Parts:
		return t.Parts
	case Random:
		return []Random{t}
	}
	return nil
}

// Describe names all parts, as far as there is room.
func (p *Parts) Describe() string {
	var each []string
	for _, t := range p.Parts {
		each = append(each, t.Describe())
	}
	all := strings.Join(each, " + ")
	return all[:min(len(all), maxLabel)]
}

// Abilities are none: what can be done is what each part says.
func (p *Parts) Abilities() Abilities { return Abilities{} }

// Commit is an error: parts have sizes of their own.
func (p *Parts) Commit(context.Context, int64) (Receipt, error) {
	return Receipt{}, errors.New("the parts of a dump are committed one by one")
}

// Abort implements Target.
func (p *Parts) Abort(reason error) error {
	return p.each(func(t Random) error { return t.Abort(reason) })
}

// Close implements Target.
func (p *Parts) Close() error { return p.each(Random.Close) }

func (p *Parts) each(f func(Random) error) (err error) {
	for _, t := range p.Parts {
		err = errors.Join(err, f(t))
	}
	return err
}
