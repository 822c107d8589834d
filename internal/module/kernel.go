// SPDX-License-Identifier: Apache-2.0

package module

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kernel is the edge to the running kernel, so that tests can stand in for it.
type Kernel interface {
	// Release is uname -r.
	Release() (string, error)
	// Load is finit_module(2).
	Load(file *os.File) error
	// Unload is delete_module(2), which does not wait for users.
	Unload(name string) error
	// Loaded tells what is loaded under a name; nil if nothing is.
	Loaded(name string) (*Loaded, error)
	// Lockdown is the kernel's lockdown level: none, integrity, confidentiality, or empty if it is not known.
	Lockdown() string
	// ModulesDisabled says whether kernel.modules_disabled forbids loading until the next boot.
	ModulesDisabled() bool
}

// Loaded is a module in the kernel.
type Loaded struct {
	Version, SrcVersion string
	// State is live, coming or going.
	State string
	// Users is the reference count; negative while the module is going.
	Users int
}

// Running is the running kernel, seen through its file systems. Securityfs and sysctl are the node's.
type Running struct {
	Sys string
	// Root is the node's root, where securityfs is mounted.
	Root string
}

// Release implements Kernel.
func (r Running) Release() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// Load implements Kernel.
func (r Running) Load(file *os.File) error { return unix.FinitModule(int(file.Fd()), "", 0) }

// Unload implements Kernel.
func (r Running) Unload(name string) error { return unix.DeleteModule(name, unix.O_NONBLOCK) }

// Loaded implements Kernel.
func (r Running) Loaded(name string) (*Loaded, error) {
	dir := filepath.Join(r.Sys, "module", name)
	// Code that is part of the kernel has a directory too, but no state.
	state, err := os.ReadFile(filepath.Join(dir, "initstate"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state of module %s: %w", name, err)
	}
	l := &Loaded{State: strings.TrimSpace(string(state))}
	for _, attribute := range []struct {
		file string
		into *string
	}{{"version", &l.Version}, {"srcversion", &l.SrcVersion}} {
		text, err := os.ReadFile(filepath.Join(dir, attribute.file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
		*attribute.into = strings.TrimSpace(string(text))
	}
	// A kernel that cannot unload modules has no count.
	text, err := os.ReadFile(filepath.Join(dir, "refcnt"))
	if err == nil {
		if l.Users, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return nil, fmt.Errorf("users of module %s: %w", name, err)
		}
	}
	return l, nil
}

// Lockdown implements Kernel.
func (r Running) Lockdown() string {
	text, err := os.ReadFile(filepath.Join(r.Root, "sys/kernel/security/lockdown"))
	if err != nil {
		return ""
	}
	_, after, found := strings.Cut(string(text), "[")
	level, _, closed := strings.Cut(after, "]")
	if !found || !closed {
		return ""
	}
	return level
}

// ModulesDisabled implements Kernel.
func (r Running) ModulesDisabled() bool {
	text, err := os.ReadFile("/proc/sys/kernel/modules_disabled")
	return err == nil && strings.TrimSpace(string(text)) == "1"
}
