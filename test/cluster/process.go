// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// process is a server that runs until the cluster is stopped. Its end before
// that is an error that ends the run.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; readable once done is closed
}

func startProcess(logDir, name, path string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(logDir, name+".log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A process group of its own: a signal meant for the program that runs the
	// cluster must not take its servers away under it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// watch cancels with a cause when the process ends before the context does.
func (p *process) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	select {
	case <-ctx.Done():
	case <-p.done:
		if ctx.Err() == nil {
			cancel(fmt.Errorf("%s ended (%v); the end of %s:\n%s", p.name, p.cmd.ProcessState, p.log, tail(p.log, 5)))
		}
	}
}

// Pause stops a server of the control plane, which does not answer until resume is called.
func (c *Cluster) Pause(name string) (resume func(), err error) {
	for _, p := range c.processes {
		if p.name != name {
			continue
		}
		if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			return nil, fmt.Errorf("pause %s: %w", name, err)
		}
		return func() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }, nil
	}
	return nil, fmt.Errorf("there is no server %s", name)
}

// stop asks the process to end and kills it if the context ends first.
func (p *process) stop(ctx context.Context) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-ctx.Done():
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// tail is the last lines of a file, for an error message.
func tail(file string, lines int) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	var last []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if last = append(last, s.Text()); len(last) > lines {
			last = last[1:]
		}
	}
	return strings.Join(last, "\n")
}
