// SPDX-License-Identifier: Apache-2.0

// Command matrix runs the matrix of kernels and machines, row by row, and keeps the
// results in a file, from which a later run goes on: rows that passed on the same commit are
// not run again. `make test-matrix` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/test/matrix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "test-matrix:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	r := matrix.Runner{Log: os.Stdout}
	results := flag.String("results", "out/matrix.json", "`file` of the results")
	which := flag.String("rows", "", "only rows whose name matches this `expression`")
	list := flag.Bool("list", false, "print the rows' names")
	again := flag.Bool("again", false, "run rows too that have passed on this commit")
	wrap := flag.String("wrap", "", "`command` to put before that of each row")
	flag.StringVar(&r.Out, "out", "out/matrix", "`directory` for logs")
	flag.StringVar(&r.Bin, "bin", "bin", "`directory` with livedump-agent, load and the modules")
	flag.StringVar(&r.Load, "load", "fork+slab", "`name` of the guests' load")
	flag.Parse()
	wanted, err := regexp.Compile(*which)
	if err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	var rows []matrix.Row
	for _, row := range matrix.Rows() {
		if wanted.MatchString(row.Name()) {
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		return fmt.Errorf("no row matches %q", *which)
	}
	if *list {
		for _, row := range rows {
			fmt.Println(row.Name())
		}
		return nil
	}
	r.Truth = filepath.Join(r.Bin, "test/truth")
	r.Wrap = strings.Fields(*wrap)
	if r.Commit, err = commit(ctx); err != nil {
		return err
	}
	return runRows(ctx, &r, rows, *results, *again)
}

func runRows(ctx context.Context, r *matrix.Runner, rows []matrix.Row, file string, again bool) error {
	var failed []string
	for i, row := range rows {
		// Read each time: another run may be at work on other rows.
		before, err := matrix.ReadResults(file)
		if err != nil {
			return err
		}
		if old := before.Of(row.Name()); old != nil && old.Error == "" && old.Commit == r.Commit && !again {
			fmt.Printf("=== %s has passed on this commit\n", row.Name())
			continue
		}
		fmt.Printf("=== %s (%d of %d)\n", row.Name(), i+1, len(rows))
		result, err := r.Run(ctx, row)
		if err != nil {
			return err
		}
		all, err := matrix.ReadResults(file)
		if err != nil {
			return err
		}
		all.Put(result)
		if err := all.Write(file); err != nil {
			return err
		}
		verdict := "passed"
		if result.Error != "" {
			verdict = "FAILED: " + result.Error
			failed = append(failed, result.Row)
		}
		fmt.Printf("=== %s: %s (%d s)\n", row.Name(), verdict, result.Seconds)
	}
	if failed != nil {
		return fmt.Errorf("%d of %d rows failed: %s", len(failed), len(rows), strings.Join(failed, " "))
	}
	fmt.Printf("test-matrix: %d rows passed\n", len(rows))
	return nil
}

// commit is the tree's, with a mark if there is more than that.
func commit(ctx context.Context) (string, error) {
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "git", args...).Output()
		if err != nil {
			return "", fmt.Errorf("git %s: %w", strings.Join(args, " "), err)
		}
		return strings.TrimSpace(string(out)), nil
	}
	id, err := git("rev-parse", "--short=12", "HEAD")
	changed, changedErr := git("status", "--porcelain", "--untracked-files=no")
	if changed != "" {
		id += "+"
	}
	return id, errors.Join(err, changedErr)
}
