// SPDX-License-Identifier: Apache-2.0

// Package churn gives the kernel work to do and checks that it gives back what
// it was given. The demo's workload and the tests' loads are made of it.
package churn

import (
	"context"
	"sync/atomic"
)

// A Churn is one kind of work.
type Churn struct {
	Name string
	// Rounds counts those that were checked; whoever calls Round keeps it.
	Rounds atomic.Int64
	// Round does some work and says what it found wrong. n counts from 0.
	Round func(ctx context.Context, n int64) error
}
