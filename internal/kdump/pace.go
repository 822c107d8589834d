// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"sync"
	"time"
)

// pace spreads bytes over time so that they do not exceed a rate. What was not used is not made up for
// later: a device that was idle is not flooded.
type pace struct {
	rate  int64 // bytes per second
	now   func() time.Time
	after func(time.Duration) <-chan time.Time

	mu   sync.Mutex
	next time.Time // when the next bytes may go
}

func newPace(rate int64) *pace { return &pace{rate: rate, now: time.Now, after: time.After} }

// wait returns when n bytes may go, or false when done is closed before.
func (p *pace) wait(n int, done <-chan struct{}) bool {
	p.mu.Lock()
	now := p.now()
	at := p.next
	if at.Before(now) {
		at = now
	}
	p.next = at.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	p.mu.Unlock()
	if !at.After(now) {
		return true
	}
	select {
	case <-p.after(at.Sub(now)):
		return true
	case <-done:
		return false
	}
}
