// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest/wire"
)

// server runs the host's commands and moves its files.
type server struct {
	conn *wire.Conn

	mu      sync.Mutex
	streams map[uint32]*stream
}

// stream is a running command or a file that is being written.
type stream struct {
	pid int
	// input takes Stdin or Data payloads; nil is the end. It is drained by one
	// goroutine, so that a program that does not read cannot hold up others.
	input chan []byte
	// closed is closed when nobody drains input any more.
	closed chan struct{}
}

func serve() error {
	// PATH is only for finding programs of the host's commands.
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	if os.Getenv("HOME") == "" {
		_ = os.Setenv("HOME", "/root")
	}
	p, err := openPort(wire.PortName)
	if err != nil {
		return err
	}
	s := &server{conn: wire.NewConn(p), streams: map[uint32]*stream{}}
	greeting, err := greet()
	if err != nil {
		return err
	}
	if err := s.conn.SendJSON(wire.Hello, 0, greeting); err != nil {
		return err
	}
	for {
		f, err := s.conn.Receive()
		if err != nil {
			return fmt.Errorf("host connection: %w", err)
		}
		s.handle(f)
	}
}

func greet() (wire.Greeting, error) {
	var g wire.Greeting
	for file, into := range map[string]*string{
		"/proc/sys/kernel/osrelease":      &g.Release,
		"/proc/sys/kernel/hostname":       &g.Hostname,
		"/proc/sys/kernel/random/boot_id": &g.BootID,
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			return g, err
		}
		*into = strings.TrimSpace(string(b))
	}
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return g, err
	}
	g.UptimeSeconds, err = strconv.ParseFloat(strings.Fields(string(b))[0], 64)
	return g, err
}

func (s *server) handle(f wire.Frame) {
	switch f.Type {
	case wire.Exec:
		var c wire.Command
		if err := f.Unmarshal(&c); err != nil {
			s.fail(f.Stream, err)
			return
		}
		if err := s.exec(f.Stream, c); err != nil {
			s.fail(f.Stream, err)
		}
	case wire.Put:
		var file wire.File
		if err := f.Unmarshal(&file); err != nil {
			s.fail(f.Stream, err)
			return
		}
		st := s.add(f.Stream)
		go s.put(f.Stream, st, file)
	case wire.Get:
		var file wire.File
		if err := f.Unmarshal(&file); err != nil {
			s.fail(f.Stream, err)
			return
		}
		go s.get(f.Stream, file)
	case wire.Stdin, wire.Data:
		if st := s.find(f.Stream); st != nil {
			payload := f.Payload
			if len(payload) == 0 {
				payload = nil
			}
			select {
			case st.input <- payload:
			case <-st.closed:
			}
		}
	case wire.Signal:
		if st := s.find(f.Stream); st != nil && st.pid > 0 && len(f.Payload) == 2 {
			pid := st.pid
			if f.Payload[1] != 0 {
				pid = -pid
			}
			_ = unix.Kill(pid, unix.Signal(f.Payload[0]))
		}
	}
}

func (s *server) add(id uint32) *stream {
	st := &stream{input: make(chan []byte, 64), closed: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[id] = st
	return st
}

func (s *server) find(id uint32) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

func (s *server) remove(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, id)
}

func (s *server) fail(id uint32, err error) {
	message := err.Error()
	if len(message) > wire.MaxPayload {
		message = message[:wire.MaxPayload]
	}
	_ = s.conn.Send(wire.Error, id, []byte(message))
}

// sender is an io.Writer that makes frames.
type sender struct {
	conn   *wire.Conn
	t      wire.Type
	stream uint32
}

func (w sender) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n := min(len(b)-written, wire.MaxPayload)
		if err := w.conn.Send(w.t, w.stream, b[written:written+n]); err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

func (s *server) exec(id uint32, c wire.Command) error {
	if len(c.Argv) == 0 {
		return errors.New("empty command")
	}
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	if c.LogFile != "" {
		if err := os.MkdirAll(filepath.Dir(c.LogFile), 0o755); err != nil {
			return err
		}
		log, err := os.OpenFile(c.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	} else {
		cmd.Stdout = sender{s.conn, wire.Stdout, id}
		cmd.Stderr = sender{s.conn, wire.Stderr, id}
	}
	var stdin io.WriteCloser
	if c.Stdin {
		var err error
		if stdin, err = cmd.StdinPipe(); err != nil {
			return err
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	st := s.add(id)
	st.pid = cmd.Process.Pid
	if err := s.conn.SendJSON(wire.Started, id, wire.Process{PID: st.pid}); err != nil {
		return err
	}
	go feed(st, stdin)
	go func() {
		err := cmd.Wait()
		s.remove(id)
		close(st.closed)
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			s.fail(id, err)
			return
		}
		status := wire.Status{Code: cmd.ProcessState.ExitCode()}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			status.Signal = int(ws.Signal())
		}
		_ = s.conn.SendJSON(wire.Exit, id, status)
	}()
	return nil
}

// feed writes a stream's input to a program. Once the program has closed its
// input the rest is thrown away.
func feed(st *stream, w io.WriteCloser) {
	for {
		select {
		case b := <-st.input:
			if w == nil {
				continue
			}
			if b == nil {
				_ = w.Close()
				w = nil
				continue
			}
			if _, err := w.Write(b); err != nil {
				_ = w.Close()
				w = nil
			}
		case <-st.closed:
			return
		}
	}
}

func (s *server) put(id uint32, st *stream, file wire.File) {
	err := writeFile(st, file)
	s.remove(id)
	close(st.closed)
	if err != nil {
		s.fail(id, err)
		return
	}
	_ = s.conn.SendJSON(wire.Exit, id, wire.Status{})
}

func writeFile(st *stream, file wire.File) error {
	if err := os.MkdirAll(filepath.Dir(file.Path), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(file.Mode)
	f, err := os.OpenFile(file.Path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	for b := range st.input {
		if b == nil {
			break
		}
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Close()
}

func (s *server) get(id uint32, file wire.File) {
	if err := s.readFile(id, file.Path); err != nil {
		s.fail(id, err)
		return
	}
	_ = s.conn.SendJSON(wire.Exit, id, wire.Status{})
}

func (s *server) readFile(id uint32, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// Not io.Copy: its buffer is small, and files in /proc and debugfs are best
	// read in large pieces.
	b := make([]byte, wire.MaxPayload)
	for {
		n, err := f.Read(b)
		if n > 0 {
			if err := s.conn.Send(wire.Data, id, b[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
