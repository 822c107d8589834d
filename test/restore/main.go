// SPDX-License-Identifier: Apache-2.0

// Command restore ends sessions of the kernel module in every way that they can
// end, in a guest under load, and checks each time that nothing stays behind:
// the page tables are bit for bit as they were (kmod/test/pgtables.c shows them),
// the module can be unloaded. Then it holds many sessions in a row and checks that neither
// memory nor time grows. `make test-restore` runs it.
//
// It writes OUT/restore.json and OUT/restore/guest.log.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"livedump.io/test/guest"
	"livedump.io/test/guestsession"
	"livedump.io/test/load/provide"
	"livedump.io/test/trial"
)

const limit = time.Hour

type options struct {
	trial.Guest
	row   int
	only  string
	words []string
}

func main() {
	o := options{}
	o.Guest.Flags(512, 2, "out", "driver, load, kmod/ and kmod-test/")
	flag.IntVar(&o.row, "row", 100, "sessions in a row")
	flag.StringVar(&o.only, "only", "", "only cases whose name has this `text`; \"-\": none")
	words := flag.String("append", "", "`words` for the guest's kernel command line")
	flag.Parse()
	o.words = strings.Fields(*words)

	trial.Run("test-restore", limit, func(ctx context.Context) (string, error) {
		r := &result{RAMMiB: o.MemoryMiB, CPUs: o.CPUs, Load: strings.Join(steadyLoad, " ")}
		err := run(ctx, o, r)
		row := "none in a row"
		if r.Row != nil {
			row = fmt.Sprintf("%d in a row", r.Row.Sessions)
		}
		return fmt.Sprintf("on kernel %s: %d ends of a session, %s,", o.Series, len(r.Cases), row),
			errors.Join(err, trial.WriteJSON(filepath.Join(o.Out, "restore.json"), r))
	})
}

// result is what restore.json holds.
type result struct {
	Kernel string       `json:"kernel"`
	RAMMiB int          `json:"ram_mib"`
	CPUs   int          `json:"cpus"`
	Load   string       `json:"load"`
	Cases  []caseResult `json:"cases"`
	Row    *rowResult   `json:"row,omitempty"`
}

type caseResult struct {
	Name string `json:"name"`
	// TablesRestored says that direct map, vmemmap and kernel image are entry by entry as before, and that
	// SharedPages pages of the vmalloc and modules regions, all that were mapped before and after, are too.
	TablesRestored bool   `json:"tables_restored"`
	SharedPages    int    `json:"shared_pages"`
	Unloaded       bool   `json:"unloaded"`
	Error          string `json:"error,omitempty"`
}

func run(ctx context.Context, o options, r *result) (err error) {
	kernel, err := guest.FetchKernel(ctx, o.Series)
	if err != nil {
		return err
	}
	r.Kernel = kernel.Release
	dir := filepath.Join(o.Out, "restore")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files, err := provide.Files(ctx, kernel, filepath.Join(o.Bin, "load"))
	if err != nil {
		return err
	}
	files = append(files,
		guest.File{Path: guestModule, Source: filepath.Join(o.Bin, "kmod", kernel.Release, "livedump.ko")},
		guest.File{Path: guestPGTables, Source: filepath.Join(o.Bin, "kmod-test", kernel.Release, "livedump_pgtables.ko")},
		guest.File{Path: guestsession.Program, Source: filepath.Join(o.Bin, "driver"), Mode: 0o755})

	trial.Step("boot kernel %s with %d MiB and %d CPUs", kernel.Release, o.MemoryMiB, o.CPUs)
	g, err := guest.Start(ctx, guest.Config{
		Kernel: kernel, Dir: dir, Console: filepath.Join(dir, "guest.log"), MemoryMiB: o.MemoryMiB, CPUs: o.CPUs, Files: files, Append: o.words,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()
	// Whatever else went wrong, the console may say why.
	defer func() { err = errors.Join(err, g.CheckConsole()) }()
	if _, err := g.Run(ctx, "insmod", guestPGTables); err != nil {
		return err
	}
	b := &bench{Guest: g, slowness: 1}
	if kasan, err := kernel.Configured("KASAN"); err != nil {
		return err
	} else if kasan {
		b.slowness = slownessOfKASAN
	}
	if err := b.underLoad(ctx, steadyLoad, func() error { return b.tryAll(ctx, cases, o.only, r) }); err != nil {
		return err
	}
	if err := b.tryAll(ctx, idleCases, o.only, r); err != nil || o.row == 0 {
		return err
	}
	return b.underLoad(ctx, rowLoad, func() error {
		var err error
		r.Row, err = b.inARow(ctx, o.row)
		return err
	})
}

// underLoad runs f while a load goes on.
func (b *bench) underLoad(ctx context.Context, load []string, f func() error) error {
	end, err := provide.Start(ctx, b.Guest, load...)
	if err != nil {
		return err
	}
	return errors.Join(f(), end(ctx))
}

// tryAll runs the cases whose name has a text, and goes on after one that failed
// unless it left the module behind, which would spoil the others.
func (b *bench) tryAll(ctx context.Context, list []endCase, only string, r *result) error {
	var errs []error
	for _, c := range list {
		if !strings.Contains(c.name, only) {
			continue
		}
		cr := caseResult{Name: c.name}
		err := b.try(ctx, c, &cr)
		if err != nil {
			cr.Error = err.Error()
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
			trial.Step("%s: FAILED", c.name)
		}
		r.Cases = append(r.Cases, cr)
		if !cr.Unloaded {
			break
		}
	}
	return errors.Join(errs...)
}

func median[T int64 | uint64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
