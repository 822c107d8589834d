// SPDX-License-Identifier: Apache-2.0

// Command faults makes dumps in a guest with the module as it is shipped, while something goes wrong: the agent's process is
// killed at each of its steps, its target fails, the clock jumps, memory runs short, the machine is reset. Each dump
// has to be completed whole, by another process if need be, or to fail and say truly why; after each the page
// tables must be what they were, and what lies on the target must be what was said of it. `make test-faults` runs it.
//
// It prints a table and writes OUT/faults.json.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"livedump.io/test/faultrow"
	"livedump.io/test/guest"
	"livedump.io/test/trial"
)

const limit = 60 * time.Minute

type options struct {
	trial.Guest
	only *regexp.Regexp
}

func main() {
	o := options{}
	o.Guest.Flags(1024, 2, "out/faults", "livedump-agent, load, kmod/ and kmod-test/")
	with := flag.String("with", "", "`file` with rows of another test, which the table is to have too")
	only := flag.String("faults", "", "`regular expression`: only the faults whose name it matches")
	flag.Parse()
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		fmt.Fprintf(os.Stderr, "faults: %v\n", err)
		os.Exit(2)
	}
	trial.Run("test-faults", limit, func(ctx context.Context) (string, error) {
		rows, err := run(ctx, o)
		if *with != "" {
			var more []faultrow.Row
			raw, rerr := os.ReadFile(*with)
			if rerr == nil {
				rerr = json.Unmarshal(raw, &more)
			}
			rows, err = append(rows, more...), errors.Join(err, rerr)
		}
		faultrow.Print(rows)
		for _, r := range rows {
			if !r.OK {
				err = errors.Join(err, fmt.Errorf("%s: %s", r.Fault, r.Seen))
			}
		}
		return fmt.Sprintf("%d faults", len(rows)), errors.Join(err, trial.WriteJSON(filepath.Join(filepath.Dir(o.Out), "faults.json"), rows))
	})
}

func run(ctx context.Context, o options) (rows []faultrow.Row, err error) {
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, err
	}
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return nil, err
	}
	b, err := newBench(ctx, o, kernel)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, f := range faults {
		if !o.only.MatchString(f.name) {
			continue
		}
		row, err := b.fault(ctx, f)
		if err != nil {
			row.Explain(err)
		}
		rows = append(rows, row)
		trial.Step("%-34s %-12s %s", row.Fault, map[bool]string{true: "as expected", false: "UNEXPECTED"}[row.OK], row.Seen)
		if row.OK {
			continue
		}
		if ctx.Err() != nil {
			return rows, context.Cause(ctx)
		}
		// The next fault's result is to be its own.
		if err := b.bootAnew(ctx); err != nil {
			return rows, fmt.Errorf("the faults after %q were not run: %w", f.name, err)
		}
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("no fault has a name that matches %q", o.only)
	}
	return rows, b.guest.CheckConsole()
}
