// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"time"
)

// pollInterval is short against what is waited for and long against what a look costs.
const pollInterval = 300 * time.Millisecond

// Poll calls look until it says that the state is there, returns an error that
// is Final, or the time is over; then the error says what the last look saw.
func Poll(ctx context.Context, what string, within time.Duration, look func(context.Context) (there bool, seen string, err error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not there within %s", within))
	defer cancel()
	last := "nothing looked at yet"
	for {
		there, seen, err := look(ctx)
		if err == nil && there {
			return nil
		}
		if final, ok := err.(Final); ok {
			return fmt.Errorf("%s: %w", what, final.Err)
		}
		// A look that the deadline interrupted says nothing about the state.
		if ctx.Err() == nil {
			if last = seen; err != nil {
				last = err.Error()
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; last seen: %s", what, context.Cause(ctx), last)
		case <-time.After(pollInterval):
		}
	}
}

// Final is an error after which Poll need not look again.
type Final struct{ Err error }

func (f Final) Error() string { return f.Err.Error() }
func (f Final) Unwrap() error { return f.Err }
