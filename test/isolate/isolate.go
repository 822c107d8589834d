// SPDX-License-Identifier: Apache-2.0

// Package isolate runs a program in mount, process and network namespaces of
// its own. What it starts can listen on fixed ports without meeting anything of
// the machine, and nothing of it outlives it: when the first process of a
// process namespace ends, the kernel kills the rest.
package isolate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideVariable tells the program that it is the isolated one; its value is the state directory.
const insideVariable = "LIVEDUMP_ISOLATED_STATE"

// File descriptors that the isolated process inherits.
const (
	lifelineFD = 3 // ends when the outer process ends
	keepFD     = 4 // one byte written: go on without the outer process
)

// An Environment is what the isolated program knows of its surroundings.
type Environment struct {
	// State is a directory of its own, removed at the end.
	State string
	// HostPID is this process's id as the machine sees it, for nsenter.
	HostPID int

	keep *os.File
	// kept is set by Keep; from then on the outer process's end means nothing.
	kept chan struct{}
}

// Main runs the calling program again in new namespaces and calls body there.
// It returns the status to exit with: body's, or 1 if the isolation failed.
//
// Body's context ends on SIGINT, SIGTERM and when the outer process is gone,
// however it went. Call Main before anything else: whatever the outer program
// has done by then is done a second time in the inner one.
func Main(name string, body func(context.Context, *Environment) int) int {
	if state := os.Getenv(insideVariable); state != "" {
		status, err := inside(state, body)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			return 1
		}
		return status
	}
	status, err := outside(name)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return status
}

func outside(name string) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("must be run as root: it makes namespaces and mounts")
	}
	state, err := os.MkdirTemp("", name+"-")
	if err != nil {
		return 1, err
	}
	lifeline, lifelineEnd, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	defer lifelineEnd.Close()
	keepEnd, keep, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)

	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideVariable+"="+state)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{lifeline, keep}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		// Ctrl-C reaches only this process, which passes it on once; otherwise
		// every child would get it at once and the order of stopping be lost.
		Setsid: true,
	}
	if err := cmd.Start(); err != nil {
		os.RemoveAll(state)
		return 1, fmt.Errorf("start in new namespaces: %w", err)
	}
	lifeline.Close()
	keep.Close()

	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	kept := make(chan int, 1)
	go func() {
		var status [1]byte
		if _, err := io.ReadFull(keepEnd, status[:]); err == nil {
			kept <- int(status[0])
		}
	}()
	for stopping := false; ; {
		select {
		case <-signals:
			if stopping { // asked twice: at once, then
				_ = cmd.Process.Kill()
			}
			stopping = true
			_ = cmd.Process.Signal(syscall.SIGTERM)
		case status := <-kept:
			return status, nil
		case err := <-ended:
			removeErr := os.RemoveAll(state)
			var exit *exec.ExitError
			switch {
			case errors.As(err, &exit) && exit.ExitCode() > 0:
				return exit.ExitCode(), removeErr
			case err != nil:
				return 1, fmt.Errorf("the isolated process ended: %w", err)
			}
			return 0, removeErr
		}
	}
}

func inside(state string, body func(context.Context, *Environment) int) (int, error) {
	// What this program starts is not isolated again.
	if err := os.Unsetenv(insideVariable); err != nil {
		return 1, err
	}
	unix.CloseOnExec(lifelineFD)
	unix.CloseOnExec(keepFD)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 1, fmt.Errorf("make mounts private: %w", err)
	}
	// Until /proc is replaced it is that of the outer namespace.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return 1, err
	}
	hostPID, err := strconv.Atoi(self)
	if err != nil {
		return 1, fmt.Errorf("/proc/self points to %q", self)
	}
	// The machine's /proc would show processes that this namespace does not have.
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return 1, fmt.Errorf("mount /proc: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return 1, fmt.Errorf("bring up the loopback interface: %w", err)
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	env := &Environment{State: state, HostPID: hostPID, keep: os.NewFile(keepFD, "keep"), kept: make(chan struct{})}
	orphaned := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(lifelineFD, "lifeline"))
		close(orphaned)
		select {
		case <-env.kept:
		default:
			cancel()
		}
	}()
	status := body(ctx, env)
	select {
	case <-orphaned:
		// Nobody waits for this process any more, so nobody else would remove it.
		_ = os.RemoveAll(state)
	default:
	}
	return status, nil
}

// Keep lets the outer process end with a status while this one goes on. From
// then on this process has no output, so that a pipeline around it can end.
func (e *Environment) Keep(status int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	close(e.kept)
	if _, err := e.keep.Write([]byte{byte(status)}); err != nil {
		return fmt.Errorf("let the outer process go: %w", err)
	}
	for _, fd := range []int{1, 2} {
		if err := unix.Dup2(int(null.Fd()), fd); err != nil {
			return err
		}
	}
	return nil
}

// ReplaceFile shows content at a path of the machine in this mount namespace only.
func (e *Environment) ReplaceFile(path string, content []byte) error {
	file := filepath.Join(e.State, "replace-"+strconv.Itoa(len(path))+"-"+filepath.Base(path))
	if err := os.WriteFile(file, content, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(file, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
