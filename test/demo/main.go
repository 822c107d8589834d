// SPDX-License-Identifier: Apache-2.0

// demo shows and checks the whole path on real parts: a Kubernetes cluster whose
// node is a QEMU guest, livedump installed from its chart, one dump while a
// workload runs, and crash and drgn reading it. With -checks it goes on to what
// must happen when things go wrong. `make demo` and `make test-cluster` call it.
// It exits with 0 only if every check was made and passed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"livedump.io/test/cluster"
	"livedump.io/test/endtoend"
	"livedump.io/test/isolate"
)

var (
	root     = flag.String("root", ".", "top of the source tree")
	out      = flag.String("out", "out/demo", "directory for results and logs; what is in it is removed")
	kernel   = flag.String("kernel", "6.1", "series of Debian's kernel for the node")
	checks   = flag.String("checks", "demo", "what to check, in this order, separated by commas: "+strings.Join(endtoend.Checks(), ", "))
	faults   = flag.String("faults", "", "regular expression of what happens in the check faults (default: everything)")
	previous = flag.String("previous", "", "directory with the previous release, for the check upgrade; see hack/build-previous")
	keep     = flag.Bool("keep", false, "leave the cluster up at the end")
)

func main() {
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	for _, check := range strings.Split(*checks, ",") {
		if !slices.Contains(endtoend.Checks(), check) {
			fmt.Fprintf(os.Stderr, "demo: there is no check %q\n", check)
			os.Exit(2)
		}
	}
	os.Exit(isolate.Main("livedump-demo", run))
}

func run(ctx context.Context, env *isolate.Environment) int {
	bench, err := prepare(env)
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		return 1
	}
	running, err := bench.Start(ctx)
	for _, check := range strings.Split(*checks, ",") {
		if err == nil {
			err = bench.Check(running, check)
		}
	}
	if err != nil && running.Err() != nil {
		// The end of the context is what failed; the rest followed from it.
		err = errors.Join(context.Cause(running), err)
	}
	if err == nil {
		bench.Step("passed: %s", strings.ReplaceAll(*checks, ",", ", "))
	}
	status := 0
	switch {
	case ctx.Err() != nil:
		status = 1
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted")
	case err != nil:
		status = 1
		fmt.Fprintf(os.Stderr, "\ndemo: FAILED: %v\nLogs are in %s.\n", err, filepath.Join(bench.Options.Out, "log"))
	}
	if *keep && bench.Cluster != nil && ctx.Err() == nil {
		if err := leaveUp(running, env, bench, status); err != nil {
			fmt.Fprintf(os.Stderr, "demo: keep the cluster: %v\n", err)
			status = 1
		}
	}
	if err := bench.Stop(); err != nil {
		fmt.Fprintf(os.Stderr, "demo: stop: %v\n", err)
		status = 1
	}
	return status
}

func prepare(env *isolate.Environment) (*endtoend.Bench, error) {
	top, err := filepath.Abs(*root)
	if err != nil {
		return nil, err
	}
	results, err := filepath.Abs(*out)
	if err != nil {
		return nil, err
	}
	if *previous != "" {
		if *previous, err = filepath.Abs(*previous); err != nil {
			return nil, err
		}
	}
	// Results of an earlier run must not pass for this one's.
	if err := os.RemoveAll(results); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(results, 0o755); err != nil {
		return nil, err
	}
	return endtoend.New(endtoend.Options{
		Root: top, State: env.State, Out: results, Kernel: *kernel, Faults: *faults, Previous: *previous,
		ReplaceHosts: func(content []byte) error { return env.ReplaceFile("/etc/hosts", content) },
	}), nil
}

// leaveUp lets the calling process go on without this one and returns when the
// cluster is to be stopped.
func leaveUp(ctx context.Context, env *isolate.Environment, bench *endtoend.Bench, status int) error {
	tools := cluster.Tools{Root: bench.Options.Root}
	path := ""
	for _, name := range []string{"kubectl", "helm"} {
		binary, err := tools.Path(name)
		if err != nil {
			return err
		}
		path += filepath.Dir(binary) + ":"
	}
	enter := filepath.Join(bench.Options.Out, "enter")
	script := fmt.Sprintf(`#!/bin/sh
# Runs a command (a shell by default) where the demo's cluster can be reached.
export KUBECONFIG=%q PATH=%q"$PATH"
[ $# -gt 0 ] || set -- "${SHELL:-/bin/sh}"
exec nsenter --target %d --net -- "$@"
`, bench.Kubeconfig, path, env.HostPID)
	if err := os.WriteFile(enter, []byte(script), 0o755); err != nil {
		return err
	}
	pidFile := filepath.Join(bench.Options.Out, "pid")
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(env.HostPID)+"\n"), 0o644); err != nil {
		return err
	}
	fmt.Printf(`
The cluster is up. To use it:
  %s kubectl get livedumps -A -o wide
  %s kubectl -n %s get pods
  %s              # a shell with kubectl and helm
The node's disk for dumps is %s.
To stop it: make demo-stop
`, enter, enter, endtoend.Namespace, enter, bench.Target)
	if err := env.Keep(status); err != nil {
		return err
	}
	<-ctx.Done()
	// Nobody reads this process's output any more.
	why := fmt.Sprintf("stopped at %s: %v\n", time.Now().Format(time.RFC3339), context.Cause(ctx))
	return errors.Join(
		os.WriteFile(filepath.Join(bench.Options.Out, "log", "stopped.txt"), []byte(why), 0o644),
		os.Remove(pidFile), os.Remove(enter))
}
