// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"livedump.io/internal/blockdev"
	"livedump.io/internal/kdump"
	"livedump.io/internal/stream"
	"livedump.io/internal/target"
	"livedump.io/node-agent/engine"
)

// targetFlags say where "dump" writes to: one of them is required.
type targetFlags struct {
	devices []string // more than one: the dump is split among them
	outputs []string
	stdout  bool
	connect string

	ca         string
	serverName string
}

func (t *targetFlags) add(flags *flag.FlagSet) {
	flags.Func("device", "block `device` that is overwritten with the dump; if given several times, the dump is split among them", another(&t.devices))
	flags.Func("output", "`file` for the dump; if given several times, the dump is split among them", another(&t.outputs))
	flags.BoolVar(&t.stdout, "stdout", false, "write the dump to standard output, as a flattened stream; the report then goes to standard error")
	flags.StringVar(&t.connect, "connect", "", "`address` (host:port) of a \"livedump receive\" that gets the dump, as a flattened stream")
	flags.StringVar(&t.ca, "ca", "", "`file` with the certificates, in PEM, that the receiver's must come from (default: those of the system)")
	flags.StringVar(&t.serverName, "server-name", "", "`name` that the receiver's certificate must have (default: the host of the address)")
}

// another appends to a flag's values.
func another(values *[]string) func(string) error {
	return func(v string) error {
		if v == "" {
			return errors.New("it is empty")
		}
		*values = append(*values, v)
		return nil
	}
}

func (t *targetFlags) check() error {
	n := 0
	for _, set := range []bool{len(t.devices) > 0, len(t.outputs) > 0, t.stdout, t.connect != ""} {
		if set {
			n++
		}
	}
	if n != 1 {
		return errors.New("one of --device, --output, --stdout and --connect is required")
	}
	names := slices.Concat(t.devices, t.outputs)
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return fmt.Errorf("%s is given twice: the parts of a dump need a target each", name)
		}
	}
	if t.connect == "" && (t.ca != "" || t.serverName != "") {
		return errors.New("--ca and --server-name go with --connect")
	}
	return nil
}

// open says how the target is opened. What it names is looked at before anything else happens.
func (t *targetFlags) open(node engine.Node, policy blockdev.Policy, session kdump.Session, resume bool) (engine.Open, error) {
	var before kdump.Session
	if resume {
		before = session
	}
	switch {
	case t.stdout:
		return func(context.Context) (target.Target, error) { return target.NewPipe(os.Stdout, "standard output"), nil }, nil
	case t.connect != "":
		o := stream.Options{Address: t.connect, ServerName: t.serverName}
		if t.ca != "" {
			var err error
			if o.CA, err = os.ReadFile(t.ca); err != nil {
				return nil, fmt.Errorf("reading the certificates of the receiver: %w", err)
			}
		}
		if err := o.Check(); err != nil {
			return nil, fmt.Errorf("--ca %s: %w", t.ca, err)
		}
		return engine.Stream(o), nil
	}
	var opens []engine.Open
	for _, p := range slices.Concat(t.devices, t.outputs) { // one of them is empty
		path, err := filepath.Abs(p)
		if err != nil {
			return nil, err
		}
		if len(t.outputs) > 0 {
			opens = append(opens, engine.File(path, policy, before))
			continue
		}
		find := func(context.Context) (blockdev.ID, error) { return node.Host.Resolve(path) }
		opens = append(opens, node.Device(find, blockdev.Need{Policy: policy, Session: session}))
	}
	if len(opens) == 1 {
		return opens[0], nil
	}
	return engine.Parts(before, opens...), nil
}

// limitCPUs keeps the process to so many CPUs, 0 being as many as it has, until restore.
func limitCPUs(n int) (restore func()) {
	was := runtime.GOMAXPROCS(0)
	if n > 0 {
		runtime.GOMAXPROCS(min(n, was))
	}
	return func() { runtime.GOMAXPROCS(was) }
}
