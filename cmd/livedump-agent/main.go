// SPDX-License-Identifier: Apache-2.0

// Command livedump-agent makes dumps of the node that it runs on: as the agent of the DaemonSet, which carries out the
// LiveDumps of its node, or once, without Kubernetes, with "livedump-agent dump". "livedump-agent freeze" only freezes
// memory for other programs to look at.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// version is set at link time.
var version = "dev"

const usage = `usage: livedump-agent [run] [flags]             carry out the LiveDumps of this node
       livedump-agent dump --device DEVICE [flags]   make one dump, without Kubernetes; also to a file, a pipe or over TLS
       livedump-agent freeze [flags]          let crash, drgn and others look at frozen memory, without a dump
       livedump-agent --version

"livedump-agent run --help" and the like list the flags.
`

// usageError is the caller's mistake: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	err := command(os.Args[1:], os.Stdout)
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "livedump-agent: %v\n", err)
	var wrong usageError
	if errors.As(err, &wrong) {
		os.Exit(2)
	}
	os.Exit(1)
}

func command(args []string, out io.Writer) error {
	name := "run"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	} else if len(args) > 0 {
		switch args[0] {
		case "--version", "-version":
			_, err := fmt.Fprintf(out, "livedump-agent %s\n", version)
			return err
		case "--help", "-help", "-h":
			_, err := fmt.Fprint(out, usage)
			return err
		}
	}
	switch name {
	case "run":
		return run(args, out)
	case "dump":
		return dump(args, out)
	case "freeze":
		return freeze(args, out)
	}
	return usageError{fmt.Errorf("unknown command %q\n%s", name, usage)}
}
