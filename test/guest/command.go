// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest/wire"
)

// hostStream is the host's side of a command or transfer.
type hostStream struct {
	stdout, stderr, data io.Writer
	writeErr             error
	started              chan wire.Process
	done                 chan struct{}
	status               wire.Status
	err                  error
}

// errGone says that the guest no longer answers.
var errGone = errors.New("the guest is gone")

// receive hands frames to their streams until the guest is gone.
func (g *Guest) receive(hello chan<- error) {
	for {
		f, err := g.conn.Receive()
		if err != nil {
			select {
			case hello <- err:
			default:
			}
			g.breakOff(fmt.Errorf("%w: %w", errGone, err))
			return
		}
		if f.Type == wire.Hello {
			select {
			case hello <- f.Unmarshal(&g.greeting):
			default: // a second greeting: PID 1's child was restarted, which it never is
			}
			continue
		}
		g.mu.Lock()
		s := g.streams[f.Stream]
		g.mu.Unlock()
		if s != nil {
			g.deliver(s, f)
		}
	}
}

func (g *Guest) breakOff(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.broken = err
	for id, s := range g.streams {
		s.err = err
		close(s.done)
		delete(g.streams, id)
	}
}

func (g *Guest) deliver(s *hostStream, f wire.Frame) {
	write := func(w io.Writer) {
		if w != nil && len(f.Payload) > 0 {
			if _, err := w.Write(f.Payload); err != nil && s.writeErr == nil {
				s.writeErr = err
			}
		}
	}
	switch f.Type {
	case wire.Started:
		var p wire.Process
		if err := f.Unmarshal(&p); err == nil {
			s.started <- p
		}
	case wire.Stdout:
		write(s.stdout)
	case wire.Stderr:
		write(s.stderr)
	case wire.Data:
		write(s.data)
	case wire.Exit, wire.Error:
		if f.Type == wire.Exit {
			s.err = f.Unmarshal(&s.status)
		} else {
			s.err = errors.New(string(f.Payload))
		}
		s.err = errors.Join(s.err, s.writeErr)
		g.mu.Lock()
		delete(g.streams, f.Stream)
		g.mu.Unlock()
		close(s.done)
	}
}

func (g *Guest) open(s *hostStream) (uint32, error) {
	s.started = make(chan wire.Process, 1)
	s.done = make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken != nil {
		return 0, g.broken
	}
	g.next++
	g.streams[g.next] = s
	return g.next, nil
}

// wait returns when the stream has ended. A guest that panicked ends it too.
func (g *Guest) wait(ctx context.Context, s *hostStream) error {
	select {
	case <-s.done:
		return s.err
	case <-g.exited:
		select {
		case <-s.done: // it ended before QEMU did
			return s.err
		default:
			return fmt.Errorf("%w: QEMU ended: %w", errGone, g.exitErr)
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Cmd is a command in a guest, in the manner of exec.Cmd.
type Cmd struct {
	Argv []string
	// Env is added to the environment of the guest's init.
	Env []string
	Dir string
	// Stdin is read to its end; nil is empty input.
	Stdin io.Reader
	// Stdout and Stderr take output as it comes; nil throws it away. They are
	// called from one goroutine for the whole guest and must not block.
	Stdout, Stderr io.Writer
	// LogFile, in the guest, takes both instead.
	LogFile string
	// PID is the process in the guest, once Start has returned.
	PID int

	g      *Guest
	id     uint32
	stream *hostStream
}

// Command prepares a command.
func (g *Guest) Command(argv ...string) *Cmd { return &Cmd{Argv: argv, g: g} }

// Start starts the command and returns when it runs.
func (c *Cmd) Start(ctx context.Context) error {
	c.stream = &hostStream{stdout: c.Stdout, stderr: c.Stderr}
	var err error
	if c.id, err = c.g.open(c.stream); err != nil {
		return c.wrap(err)
	}
	err = c.g.conn.SendJSON(wire.Exec, c.id, wire.Command{
		Argv: c.Argv, Env: c.Env, Dir: c.Dir, Stdin: c.Stdin != nil, LogFile: c.LogFile,
	})
	if err != nil {
		return c.wrap(err)
	}
	select {
	case p := <-c.stream.started:
		c.PID = p.PID
	case <-c.stream.done:
		select {
		case p := <-c.stream.started: // it was quick
			c.PID = p.PID
		default:
			return c.wrap(c.stream.err)
		}
	case <-c.g.exited:
		return c.wrap(fmt.Errorf("%w: QEMU ended: %w", errGone, c.g.exitErr))
	case <-ctx.Done():
		return c.wrap(ctx.Err())
	}
	if c.Stdin != nil {
		go c.feed()
	}
	return nil
}

func (c *Cmd) feed() {
	b := make([]byte, wire.MaxPayload)
	for {
		n, err := c.Stdin.Read(b)
		if n > 0 && c.g.conn.Send(wire.Stdin, c.id, b[:n]) != nil {
			return
		}
		if err != nil {
			_ = c.g.conn.Send(wire.Stdin, c.id, nil)
			return
		}
	}
}

// ExitError says that a command failed.
type ExitError struct {
	Argv   []string
	Code   int
	Signal int
	// Stderr is the end of what it said, if nobody else took it.
	Stderr string
}

func (e *ExitError) Error() string {
	s := fmt.Sprintf("%s: exit status %d", strings.Join(e.Argv, " "), e.Code)
	if e.Signal != 0 {
		s = fmt.Sprintf("%s: %v", strings.Join(e.Argv, " "), unix.Signal(e.Signal))
	}
	if e.Stderr != "" {
		s += ": " + strings.TrimSpace(e.Stderr)
	}
	return s
}

// Wait returns when the command has ended: nil for exit status 0, an *ExitError
// for another or for a signal, or why that is not known.
func (c *Cmd) Wait(ctx context.Context) error {
	if err := c.g.wait(ctx, c.stream); err != nil {
		return c.wrap(err)
	}
	if s := c.stream.status; s.Code != 0 || s.Signal != 0 {
		return &ExitError{Argv: c.Argv, Code: s.Code, Signal: s.Signal}
	}
	return nil
}

// Exited is closed when the command has ended, or nothing is known of it any more.
func (c *Cmd) Exited() <-chan struct{} { return c.stream.done }

// Run starts the command and waits for it.
func (c *Cmd) Run(ctx context.Context) error {
	if err := c.Start(ctx); err != nil {
		return err
	}
	return c.Wait(ctx)
}

// Signal sends a signal to the command, and not to processes that it started.
func (c *Cmd) Signal(signal unix.Signal) error {
	return c.g.conn.Send(wire.Signal, c.id, []byte{byte(signal), 0})
}

// Kill ends the command and the processes that it started, unless they have left
// its process group.
func (c *Cmd) Kill() error {
	return c.g.conn.Send(wire.Signal, c.id, []byte{byte(unix.SIGKILL), 1})
}

func (c *Cmd) wrap(err error) error {
	return fmt.Errorf("guest: %s: %w", strings.Join(c.Argv, " "), err)
}

// Result is what a command printed.
type Result struct {
	Stdout, Stderr string
}

// Run runs a command and returns its output. A failure is an *ExitError with
// what it said on stderr.
func (g *Guest) Run(ctx context.Context, argv ...string) (Result, error) {
	c := g.Command(argv...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run(ctx)
	var exit *ExitError
	if errors.As(err, &exit) {
		exit.Stderr = stderr.String()
	}
	if err != nil && exit == nil {
		// The command may still be running and writing.
		return Result{}, err
	}
	return Result{stdout.String(), stderr.String()}, err
}

// Put writes a file in the guest.
func (g *Guest) Put(ctx context.Context, path string, mode fs.FileMode, content io.Reader) error {
	s := &hostStream{}
	id, err := g.open(s)
	if err != nil {
		return fmt.Errorf("guest: put %s: %w", path, err)
	}
	if err := g.conn.SendJSON(wire.Put, id, wire.File{Path: path, Mode: uint32(mode.Perm())}); err != nil {
		return fmt.Errorf("guest: put %s: %w", path, err)
	}
	b := make([]byte, wire.MaxPayload)
	for {
		n, err := content.Read(b)
		if n > 0 {
			if err := g.conn.Send(wire.Data, id, b[:n]); err != nil {
				return fmt.Errorf("guest: put %s: %w", path, err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("guest: put %s: %w", path, err)
		}
	}
	if err := g.conn.Send(wire.Data, id, nil); err != nil {
		return fmt.Errorf("guest: put %s: %w", path, err)
	}
	if err := g.wait(ctx, s); err != nil {
		return fmt.Errorf("guest: put %s: %w", path, err)
	}
	return nil
}

// PutFile copies a file of the host into the guest.
func (g *Guest) PutFile(ctx context.Context, path, source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return g.Put(ctx, path, info.Mode(), f)
}

// Get copies a file of the guest to w.
func (g *Guest) Get(ctx context.Context, path string, w io.Writer) error {
	s := &hostStream{data: w}
	id, err := g.open(s)
	if err != nil {
		return fmt.Errorf("guest: get %s: %w", path, err)
	}
	if err := g.conn.SendJSON(wire.Get, id, wire.File{Path: path}); err != nil {
		return fmt.Errorf("guest: get %s: %w", path, err)
	}
	if err := g.wait(ctx, s); err != nil {
		return fmt.Errorf("guest: get %s: %w", path, err)
	}
	return nil
}

// ReadFile returns the content of a file of the guest.
func (g *Guest) ReadFile(ctx context.Context, path string) ([]byte, error) {
	var b syncBuffer
	err := g.Get(ctx, path, &b)
	return b.bytes(), err
}

// syncBuffer is a buffer that may be read while a late frame is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Bytes()
}
