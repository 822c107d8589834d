// SPDX-License-Identifier: Apache-2.0

// Package provide puts the program workload into a guest and runs it.
package provide

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest"
)

// program is where the program is in the guest.
const program = "/opt/workload"

// Unhurried is a pause between two rounds that leaves the processors to the dump as well.
const Unhurried = 100 * time.Millisecond

// patience is how long it may take to begin and to end in a guest without hardware support.
const patience = 2 * time.Minute

var running = regexp.MustCompile(`(?m)^workload: ok .*\bparked=(\d+)$`)

// File is what the guest must have: the program, which is built already at bin.
func File(bin string) guest.File { return guest.File{Path: program, Source: bin, Mode: 0o755} }

// Workload is a running one.
type Workload struct {
	cmd  *guest.Cmd
	said *guest.Output
	// ParkedTID is the thread whose kernel stack is known beforehand, see judge.ParkedFrames.
	ParkedTID int
}

// Start starts the program, which pauses between two rounds, in a guest that has File, and returns when it has
// finished its first round.
func Start(ctx context.Context, g *guest.Guest, pause time.Duration) (*Workload, error) {
	w := &Workload{cmd: g.Command(program, "-dir", "/tmp", "-pause", pause.String()), said: &guest.Output{}}
	w.cmd.Stdout, w.cmd.Stderr = w.said, w.said
	if err := w.cmd.Start(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err := w.said.Wait(ctx, w.cmd, running)
	if err != nil {
		return nil, err
	}
	w.ParkedTID, err = strconv.Atoi(m[1])
	return w, err
}

// Stop ends the program and returns its last line, which has what its own checks found. Anything but success is an
// error.
func (w *Workload) Stop(ctx context.Context) (verdict string, err error) {
	if err := w.cmd.Signal(unix.SIGTERM); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = w.cmd.Wait(ctx)
	verdict = w.said.LastLine()
	if err != nil {
		return verdict, fmt.Errorf("the workload's own checks: %w: %s", err, verdict)
	}
	if !strings.HasPrefix(verdict, "workload: passed") {
		return verdict, fmt.Errorf("the workload ended without a verdict: %q", verdict)
	}
	return verdict, nil
}
