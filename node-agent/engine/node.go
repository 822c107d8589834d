// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"livedump.io/internal/blockdev"
	"livedump.io/internal/kmsg"
	"livedump.io/internal/module"
	"livedump.io/internal/session"
	"livedump.io/internal/target"
)

// Node is the machine that the process runs on.
type Node struct {
	Host   blockdev.Host
	Loader module.Loader
	Log    *slog.Logger
}

// Device opens a block device that find names when the dump begins.
func (n Node) Device(find func() (blockdev.ID, error), need blockdev.Need) func(context.Context) (target.Target, error) {
	return func(ctx context.Context) (target.Target, error) {
		id, err := find()
		if err != nil {
			return nil, err
		}
		d, err := blockdev.Open(ctx, n.Host, id, need)
		if err != nil {
			return nil, err
		}
		return target.NewDevice(d), nil
	}
}

// Engine makes dumps of this node to what open opens when the dump begins.
func (n Node) Engine(open func(context.Context) (target.Target, error)) *Engine {
	return &Engine{
		OpenTarget: open,
		LoadModule: n.Loader.Ensure,
		OpenSession: func(ctx context.Context) (session.Session, error) {
			node := module.Node{Sys: n.Host.Sys, Dev: filepath.Join(n.Host.Root, "dev")}
			d, err := session.OpenWith(func() (*os.File, error) { return node.Open(ctx) })
			if err != nil {
				return nil, err
			}
			return d, nil
		},
		RAM:       SystemRAM,
		KernelLog: n.kernelLog,
		Now:       time.Now,
		Log:       n.Log,
	}
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
