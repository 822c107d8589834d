// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
)

const sampleName = "sample" // in config/samples/livedump.yaml

// sample is the path of a file in config/samples.
func (b *Bench) sample(name string) string {
	return filepath.Join(b.Options.Root, "config/samples", name)
}

// demo makes one dump while the workload runs, has crash and drgn read it and
// checks that the node did not suffer. It leaves livedump.yaml, dump.kdump,
// crash.txt and drgn.txt in the output directory.
func (b *Bench) demo(ctx context.Context) (err error) {
	if err := b.StartWorkload(ctx); err != nil {
		return err
	}
	ready, err := b.WatchNode(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ready.Stop()) }()
	tables, err := b.PageTables(ctx)
	if err != nil {
		return err
	}
	counts, err := b.Workload(ctx)
	if err != nil {
		return err
	}

	observer := b.observe(ctx, sampleName)
	defer observer.stop()

	b.Step("kubectl apply -f config/samples/livedump.yaml")
	if _, err := b.Kubectl(ctx, nil, "apply", "-f", b.sample("livedump.yaml")); err != nil {
		return err
	}
	dump, err := b.awaitSample(ctx)
	if err != nil {
		return err
	}
	before, after, err := observer.around(ctx, dump)
	if err != nil {
		return err
	}
	yaml, err := b.Kubectl(ctx, nil, "--namespace="+Namespace, "get", "livedump", sampleName, "-o", "yaml")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.Options.Out, "livedump.yaml"), []byte(yaml), 0o644); err != nil {
		return err
	}
	file, err := b.takeDump(ctx, dump, b.Target, "dump.kdump")
	if err != nil {
		return err
	}

	if err := b.AwaitWorkload(ctx, counts); err != nil {
		return err
	}
	if err := b.AwaitCleanNode(ctx); err != nil {
		return err
	}
	b.Step("the module is unloaded and nothing else of livedump is left on the node")
	if err := b.ExpectSameTables(ctx, tables); err != nil {
		return err
	}
	if err := b.EndWorkload(ctx); err != nil {
		return err
	}
	if err := b.Guest.CheckConsole(); err != nil {
		return err
	}
	b.Step("the node's kernel has reported no trouble")
	if err := b.judge(ctx, []string{file}, before, after); err != nil {
		return err
	}
	if err := ready.Stop(); err != nil {
		return err
	}
	b.Step("node %s was Ready throughout", b.NodeName())
	b.summarize(dump, file)
	return nil
}

// awaitSample waits as a user would, with kubectl wait, and beside it shows what
// is going on. Kubectl waits for success only, so a failure ends the wait here.
func (b *Bench) awaitSample(ctx context.Context) (*livedumpv1alpha1.LiveDump, error) {
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	waited := make(chan error, 1)
	go func() {
		_, err := b.Kubectl(waitCtx, nil, "--namespace="+Namespace, "wait", "livedump/"+sampleName,
			"--for=condition=Succeeded", "--timeout="+dumpWithin.String())
		waited <- err
	}()
	dump, err := b.AwaitEnd(ctx, sampleName)
	if err != nil {
		return nil, err
	}
	if err := ExpectSucceeded(dump); err != nil {
		return nil, err
	}
	return dump, <-waited
}

// takeDump copies a dump off a disk's image into the output directory and
// compares it with what the LiveDump says of it.
func (b *Bench) takeDump(ctx context.Context, dump *livedumpv1alpha1.LiveDump, disk, name string) (file string, err error) {
	file = filepath.Join(b.Options.Out, name)
	result := dump.Status.Result
	sum, err := copyDump(disk, file, result.SizeBytes)
	if err != nil {
		return "", err
	}
	if sum != result.SHA256 {
		return "", fmt.Errorf("the dump on the disk has the SHA-256 %s, LiveDump %s says %s", sum, dump.Name, result.SHA256)
	}
	out, err := b.livedump(ctx, "verify", file)
	if err != nil {
		return "", err
	}
	verdict, _, _ := strings.Cut(strings.TrimPrefix(out, file+": "), "\n")
	b.Step("copied the dump off the disk: its SHA-256 is right; livedump verify says %s", verdict)
	return file, nil
}

func (b *Bench) summarize(dump *livedumpv1alpha1.LiveDump, file string) {
	r := dump.Status.Result
	out := b.Options.Out
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, out); err == nil && !strings.HasPrefix(rel, "..") {
			out = rel
		}
	}
	fmt.Printf("\nLiveDump %s of node %s (Linux %s)\n", dump.Name, b.NodeName(), b.kernel.Release)
	line := func(what, format string, args ...any) { fmt.Printf("  %-12s %s\n", what, fmt.Sprintf(format, args...)) }
	line("frozen for", "%s (every CPU held; emulated CPUs are slow)", time.Duration(r.FreezeMicroseconds)*time.Microsecond)
	line("pages", "%d in the dump, %d lost, %d that may not be of the one instant", r.PagesDumped, r.PagesLost, r.PagesUncovered)
	for _, class := range r.PagesByClass {
		if class.Pages > 0 {
			line("", "%8d %-13s %s", class.Pages, class.Class, strings.ToLower(class.Disposition))
		}
	}
	line("size", "%.1f MiB, %s", float64(r.SizeBytes)/(1<<20), r.Format)
	line("took", "%s", dump.Status.CompletionTime.Sub(dump.Status.StartTime.Time).Round(time.Second))
	line("dump", "%s", filepath.Join(out, filepath.Base(file)))
	line("read by", "crash: %s, drgn: %s", filepath.Join(out, "crash.txt"), filepath.Join(out, "drgn.txt"))
	line("node", "%s, its kernel's messages: %s", filepath.Join(out, "livedump.yaml"), filepath.Join(out, "guest.log"))
}
