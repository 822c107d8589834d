// SPDX-License-Identifier: Apache-2.0

// Package trial is what the tests and benchmarks that are programs of their own have in common: signals,
// a limit, a line for each step, the last line, and results as JSON.
package trial

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Run does the work and ends the program: with a last line that has what the work says of itself, and
// status 1 if it failed. The context ends with SIGINT, SIGTERM and after the limit, which is for a
// machine that is too slow, not part of a verdict.
func Run(name string, limit time.Duration, work func(context.Context) (said string, err error)) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	start := time.Now()
	said, err := work(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		err = errors.Join(err, cause)
	}
	cancel()
	stop()
	if said != "" {
		said = " " + said
	}
	took := time.Since(start).Round(time.Second)
	if err != nil {
		fmt.Fprintf(os.Stderr, "\n%v\n", err)
		fmt.Printf("%s: FAILED%s after %v\n", name, said, took)
		os.Exit(1)
	}
	fmt.Printf("%s: passed%s in %v\n", name, said, took)
}

// Step tells what begins. Work here is long; silence would look like a hang.
func Step(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// WriteJSON writes results to a file, in a directory that is made if need be.
func WriteJSON(file string, results any) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
