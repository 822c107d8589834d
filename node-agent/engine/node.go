// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"livedump.io/internal/blockdev"
	"livedump.io/internal/kmsg"
	"livedump.io/internal/module"
	"livedump.io/internal/session"
)

// Node is the machine that the process runs on.
type Node struct {
	Host   blockdev.Host
	Loader module.Loader
	Log    *slog.Logger
}

// Engine makes dumps of this node to what open opens when the dump begins.
func (n Node) Engine(open Open) *Engine {
	return &Engine{
		OpenTarget:  open,
		LoadModule:  n.Loader.Ensure,
		OpenSession: n.openSession,
		OpenLoaded: func(ctx context.Context) (session.Session, error) {
			loaded, err := n.Loader.Kernel.Loaded(module.Name)
			if err != nil {
				return nil, err
			}
			if loaded == nil || loaded.State != "live" {
				return nil, session.ErrNoDevice
			}
			return n.openSession(ctx)
		},
		RAM:       SystemRAM,
		KernelLog: n.kernelLog,
		Now:       time.Now,
		Log:       n.Log,
	}
}

// Session is the frozen session that there is, whoever has it, as the module shows it to everybody.
func (n Node) Session() (uuid string, frozen bool, err error) {
	dir := filepath.Join(n.Host.Sys, "class/misc", module.Name)
	state, err := os.ReadFile(filepath.Join(dir, "state"))
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("state of the module's session: %w", err)
	}
	id, err := os.ReadFile(filepath.Join(dir, "uuid"))
	if err != nil {
		return "", false, fmt.Errorf("the module's session: %w", err)
	}
	return strings.TrimSpace(string(id)), strings.TrimSpace(string(state)) == session.StateFrozen.String(), nil
}

func (n Node) openSession(ctx context.Context) (session.Session, error) {
	node := module.Node{Sys: n.Host.Sys, Dev: filepath.Join(n.Host.Root, "dev")}
	d, err := session.OpenWith(func() (*os.File, error) { return node.Open(ctx) })
	if err != nil {
		return nil, err
	}
	return d, nil
}

// kernelLog listens to what the kernel says of the module.
func (n Node) kernelLog() func() []string {
	tail, err := kmsg.Open(filepath.Join(n.Host.Root, "dev/kmsg"))
	if err != nil {
		n.Log.Debug("no kernel log", "error", err)
		return func() []string { return nil }
	}
	return func() []string {
		defer tail.Close()
		messages, err := tail.Messages(module.Name+": ", kmsg.Warning)
		if err != nil {
			n.Log.Debug("reading the kernel log", "error", err)
		}
		return messages
	}
}
