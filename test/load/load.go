// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/test/load/provide"
)

// A load is one kind of work for the kernel.
type load struct {
	name, about string
	// start makes ready; its error says why the load cannot run here.
	start func(e *env) (*work, error)
}

// work is a load that is ready.
type work struct {
	// round does some of it and says how many operations that were.
	round func(ctx context.Context, n int64) (operations int, err error)
	// workers call round at the same time, with different numbers; 0 is one.
	workers int
	// without is a part of the load that this kernel has not; empty: none.
	without string
}

// env is what loads may use.
type env struct {
	dir     string
	pause   time.Duration
	disks   map[string]string
	cleanup []func() error
}

// atEnd runs f when all loads have ended, the last one given first.
func (e *env) atEnd(f func() error) { e.cleanup = append(e.cleanup, f) }

func (e *env) close() error {
	var errs []error
	for i := len(e.cleanup) - 1; i >= 0; i-- {
		errs = append(errs, e.cleanup[i]())
	}
	e.cleanup = nil
	return errors.Join(errs...)
}

// set writes a setting of the system and has it put back at the end.
func (e *env) set(file, value string) error {
	was, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", file, value, err)
	}
	e.atEnd(func() error {
		// A choice is shown as "always [madvise] never".
		text := strings.TrimSpace(string(was))
		if _, rest, ok := strings.Cut(text, "["); ok {
			text, _, _ = strings.Cut(rest, "]")
		}
		return os.WriteFile(file, []byte(text), 0)
	})
	return nil
}

// tempDir makes a directory that is removed at the end.
func (e *env) tempDir(name string) (string, error) {
	dir, err := os.MkdirTemp(e.dir, "load-"+name+"-")
	if err != nil {
		return "", err
	}
	e.atEnd(func() error { return os.RemoveAll(dir) })
	return dir, nil
}

// moduleFiles returns the files of a kernel module and of what it needs, in the
// order in which to load them; none if the kernel has it built in.
func moduleFiles(name string) ([]string, error) {
	b, err := os.ReadFile(provide.ModuleList)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", name, err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 0 && f[0] == name {
			return f[1:], nil
		}
	}
	return nil, fmt.Errorf("module %s is not among those of %s", name, provide.ModuleList)
}

func insert(file, parameters string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil {
		return fmt.Errorf("load %s: %w", filepath.Base(file), err)
	}
	return nil
}

// needModule loads a module unless it is there. It stays: others may use it.
func needModule(name string) error {
	files, err := moduleFiles(name)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := insert(file, ""); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}
