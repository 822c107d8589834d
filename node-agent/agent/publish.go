// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
	"livedump.io/node-agent/engine"
)

// publishEvery is the shortest time between two writes of progress.
const publishEvery = time.Second

// publisher writes the progress of a dump, never faster than publishEvery and never in the way of the dump: what could
// not be written in time is replaced by what is newer.
type publisher struct {
	agent      *Agent
	generation int64
	log        *slog.Logger

	mu    sync.Mutex
	part  Part
	fresh bool

	wake chan struct{}
	quit chan struct{}
	end  chan struct{}
}

func (a *Agent) publish(p Part, generation int64, log *slog.Logger) *publisher {
	pub := &publisher{agent: a, generation: generation, log: log, part: p,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), end: make(chan struct{})}
	go pub.loop()
	return pub
}

// progress takes note of how far the dump is. It does not block.
func (p *publisher) progress(g engine.Progress) {
	now := p.agent.Clock.Now()
	p.mu.Lock()
	p.part.Progress = v1alpha1.Progress{PagesTotal: int64(g.PagesTotal), PagesWritten: int64(g.PagesDone),
		BytesWritten: int64(g.BytesWritten), Percent: g.Percent(), LastUpdateTime: metav1.NewTime(now)}
	if g.ModuleLoaded {
		p.part.set(now, p.generation, v1alpha1.ConditionModuleLoaded, metav1.ConditionTrue, reasonLoaded, "the module is loaded")
	}
	p.part.set(now, p.generation, v1alpha1.ConditionCaptured, metav1.ConditionUnknown, v1alpha1.ReasonRunning, string(g.Step))
	p.fresh = true
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// stop ends the writing and returns the part as it is now.
func (p *publisher) stop() Part {
	close(p.quit)
	<-p.end
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.part.clone()
}

func (p *publisher) loop() {
	defer close(p.end)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-p.quit:
			cancel() // a write that hangs must not hold up the last report
		case <-p.end:
		}
	}()
	for {
		// The claim was written a moment ago, so the first wait is before the first write.
		pause := p.agent.Clock.NewTimer(publishEvery)
		select {
		case <-pause.C():
		case <-p.quit:
			pause.Stop()
			return
		}
		select {
		case <-p.wake:
		case <-p.quit:
			return
		}
		p.mu.Lock()
		part, fresh := p.part.clone(), p.fresh
		p.fresh = false
		p.mu.Unlock()
		if !fresh {
			continue
		}
		writeCtx, writeCancel := context.WithTimeout(ctx, writeTimeout)
		if err := p.agent.Status.Write(writeCtx, part); err != nil && ctx.Err() == nil {
			p.log.Warn("progress could not be written", "error", err)
		}
		writeCancel()
	}
}
