// SPDX-License-Identifier: Apache-2.0

// Package guestsession holds sessions of the kernel module in a guest, step by
// step, by the program that reserve's and restore's tests share.
package guestsession

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"livedump.io/internal/session"
	"livedump.io/test/guest"
)

// Program is where the driver is in the guest.
const Program = "/opt/driver"

// Driver is a running driver; it owns a session of its own.
type Driver struct {
	cmd     *guest.Cmd
	in      *io.PipeWriter
	answers chan Answer
	stderr  *strings.Builder
}

// Answer is what the driver says about a step. Kind is a word for the error.
type Answer struct {
	Step     string           `json:"step"`
	Error    string           `json:"error"`
	Kind     string           `json:"kind"`
	Reported int              `json:"reported"`
	Prepared session.Prepared `json:"prepared"`
	Stats    session.Stats    `json:"stats"`
	// FaultNS is what an ordinary page fault takes.
	FaultNS float64 `json:"fault_ns"`
}

// Start starts a driver.
func Start(ctx context.Context, g *guest.Guest) (*Driver, error) {
	in, out := io.Pipe()
	d := &Driver{cmd: g.Command(Program), in: out, answers: make(chan Answer, 16), stderr: &strings.Builder{}}
	d.cmd.Stdin = in
	d.cmd.Stdout = &lines{to: d.answers}
	d.cmd.Stderr = d.stderr
	return d, d.cmd.Start(ctx)
}

// lines takes JSON apart as it comes.
type lines struct {
	mu   sync.Mutex
	rest string
	to   chan<- Answer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest += string(b)
	for {
		line, rest, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(b), nil
		}
		l.rest = rest
		var a Answer
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			a = Answer{Step: "unreadable", Error: fmt.Sprintf("%v: %q", err, line)}
		}
		// Nobody asks for more steps than there is room for answers.
		l.to <- a
	}
}

// Tell has the driver take a step, and does not wait for its answer.
func (d *Driver) Tell(step string) error {
	if _, err := io.WriteString(d.in, step+"\n"); err != nil {
		return fmt.Errorf("driver: %s: %w", step, err)
	}
	return nil
}

// Answer waits for the next answer, whatever it is.
func (d *Driver) Answer(ctx context.Context) (Answer, error) {
	select {
	case a := <-d.answers:
		return a, nil
	case <-d.cmd.Exited():
		select {
		case a := <-d.answers: // its last words
			return a, nil
		default:
			return Answer{}, fmt.Errorf("the driver has ended: %s", d.stderr.String())
		}
	case <-ctx.Done():
		return Answer{}, context.Cause(ctx)
	}
}

// Ask has the driver take a step and returns its answer, which may say that the
// step failed.
func (d *Driver) Ask(ctx context.Context, step string) (Answer, error) {
	if err := d.Tell(step); err != nil {
		return Answer{}, err
	}
	name, _, _ := strings.Cut(step, " ")
	for {
		a, err := d.Answer(ctx)
		if err != nil {
			return a, fmt.Errorf("driver: %s: %w", step, err)
		}
		if a.Step == name {
			return a, nil
		}
	}
}

// Do takes steps that must all succeed.
func (d *Driver) Do(ctx context.Context, steps ...string) error {
	for _, step := range steps {
		a, err := d.Ask(ctx, step)
		if err != nil {
			return err
		}
		if a.Error != "" {
			return fmt.Errorf("driver: %s: %s", step, a.Error)
		}
	}
	return nil
}

// Kill ends the driver by SIGKILL, and waits until it is gone.
func (d *Driver) Kill(ctx context.Context) error {
	if err := d.cmd.Kill(); err != nil {
		return err
	}
	var exit *guest.ExitError
	if err := d.cmd.Wait(ctx); !errors.As(err, &exit) || exit.Signal != int(unix.SIGKILL) {
		return fmt.Errorf("the driver was to die of SIGKILL, but: %w", err)
	}
	return d.in.Close()
}

// End has the driver end by itself.
func (d *Driver) End(ctx context.Context) error {
	if err := d.in.Close(); err != nil {
		return err
	}
	return d.cmd.Wait(ctx)
}
