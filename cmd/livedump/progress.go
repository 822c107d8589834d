// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"livedump.io/internal/kdump"
)

// progress is a bar on a terminal. Elsewhere it is a line for each step, and one every ten seconds.
type progress struct {
	out      io.Writer
	terminal bool
	now      func() time.Time
	last     string
	step     string
	shown    time.Time
}

const (
	barWidth   = 30
	plainEvery = 10 * time.Second
)

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, now: time.Now}
	if f, ok := out.(*os.File); ok {
		p.terminal = term.IsTerminal(int(f.Fd()))
	}
	p.shown = p.now() // what is over soon needs no line
	return p
}

// show is called by one goroutine at a time.
func (p *progress) show(step string, done, total uint64) {
	if total == 0 {
		return
	}
	percent := min(100, done*100/total)
	if !p.terminal {
		if now := p.now(); now.Sub(p.shown) >= plainEvery {
			p.shown = now
			fmt.Fprintf(p.out, "%s: %d%%\n", step, percent)
		}
		return
	}
	full := int(percent) * barWidth / 100
	line := fmt.Sprintf("%-10s [%s%s] %3d%%", step, strings.Repeat("#", full), strings.Repeat("-", barWidth-full), percent)
	if line != p.last {
		p.last = line
		fmt.Fprint(p.out, "\r", line, "\033[K")
	}
}

func (p *progress) verifying(v kdump.VerifyProgress) {
	if v.Pages > 0 {
		p.show("pages", v.Pages, v.PagesTotal)
	} else {
		p.show("checksums", v.Bytes, v.BytesTotal)
	}
}

// received shows how much has come, of what nobody knows the size.
func (p *progress) received(bytes int64) {
	now := p.now()
	wait := plainEvery
	if p.terminal {
		wait = time.Second / 5
	}
	if now.Sub(p.shown) < wait {
		return
	}
	p.shown = now
	p.last = fmt.Sprintf("received %s", bytesText(uint64(bytes)))
	if p.terminal {
		fmt.Fprint(p.out, "\r", p.last, "\033[K")
	} else {
		fmt.Fprintln(p.out, p.last)
	}
}

// follow shows what a Writer says until the function that it returns is called.
func (p *progress) follow(ask func() kdump.Progress) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				switch v := ask(); v.Step {
				case "Verifying":
					p.show("verifying", v.BytesReadBack, v.BytesWritten)
				default:
					p.show("writing", v.PagesDone, v.Pages)
				}
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

func (p *progress) clear() {
	if p.terminal && p.last != "" {
		fmt.Fprint(p.out, "\r\033[K")
	}
}
