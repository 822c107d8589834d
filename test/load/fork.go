// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"livedump.io/test/churn"
)

const (
	forkWorkers = 3
	shellLoops  = 4
	// A loop is a subshell, its two sides of a pipe, and cat.
	shellProcesses = 1 + 3*shellLoops
)

var forkLoad = load{
	name:  "fork",
	about: "processes: fork, exec, pipe, exit, with what they print checked",
	start: func(e *env) (*work, error) {
		shell, err := exec.LookPath("busybox")
		if err != nil {
			return nil, err
		}
		process := churn.NewProcess()
		return &work{workers: forkWorkers, round: func(ctx context.Context, n int64) (int, error) {
			if n%8 == 0 {
				// A multi-threaded program: clone with shared memory.
				return 1, process.Round(ctx, n&0xffff)
			}
			var script, want strings.Builder
			for i := range shellLoops {
				fmt.Fprintf(&script, "(echo %d-%d | %s cat);", n, i, shell)
				fmt.Fprintf(&want, "%d-%d\n", n, i)
			}
			out, err := exec.CommandContext(ctx, shell, "sh", "-c", script.String()).Output()
			if err != nil {
				return 0, fmt.Errorf("shell: %w", err)
			}
			if string(out) != want.String() {
				return 0, fmt.Errorf("shell printed %q, want %q", out, want.String())
			}
			return shellProcesses, nil
		}}, nil
	},
}
