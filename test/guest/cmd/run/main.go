// SPDX-License-Identifier: Apache-2.0

// Command run boots a guest, runs one command in it and ends it: the short way
// to try a module by hand.
//
//	go run ./test/guest/cmd/run [flags] -- COMMAND [ARGUMENT...]
//
// It exits with the command's status, or 1 if the guest's console has trouble.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest"
	"livedump.io/test/load/provide"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
	}
	os.Exit(code)
}

func run() (code int, err error) {
	var files, get, words, modules, disks list
	series := flag.String("kernel", "6.1", "kernel `series`")
	mem := flag.Int("mem", 1024, "memory in `MiB`")
	cpus := flag.Int("cpus", 2, "virtual CPUs")
	cpu := flag.String("cpu", "max", "QEMU's CPU `model`")
	console := flag.Bool("console", false, "print the whole console, not only its trouble")
	keep := flag.String("dir", "", "keep console.log and qemu.log in this `directory`")
	net := flag.Bool("net", false, "user networking")
	load := flag.String("load", "", "built `program` test/load, to put into the guest with all it needs (as "+provide.Program+")")
	flag.Var(&files, "file", "`source[:path]` to put into the guest (path defaults to /<name>)")
	flag.Var(&get, "get", "`path:target` of a file to copy out of the guest at the end")
	flag.Var(&words, "append", "`word` for the kernel's command line")
	flag.Var(&modules, "module", "`name` of a kernel module to load at boot")
	flag.Var(&disks, "disk", "`image[:MiB]` of a raw disk; with a size it is made new")
	flag.Parse()
	argv := flag.Args()
	if len(argv) == 0 {
		return 2, errors.New("no command given")
	}

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	kernel, err := guest.FetchKernel(ctx, *series)
	if err != nil {
		return 1, err
	}
	config := guest.Config{
		Kernel: kernel, Dir: *keep, MemoryMiB: *mem, CPUs: *cpus, CPU: *cpu,
		Append: words, Modules: modules,
	}
	if *net {
		config.HostForward = []string{}
	}
	for _, f := range files {
		source, path, ok := strings.Cut(f, ":")
		if !ok {
			path = "/" + filepath.Base(source)
		}
		config.Files = append(config.Files, guest.File{Path: path, Source: source})
	}
	if *load != "" {
		files, err := provide.Files(ctx, kernel, *load)
		if err != nil {
			return 1, err
		}
		config.Files = append(config.Files, files...)
	}
	for _, d := range disks {
		image, size, ok := strings.Cut(d, ":")
		if ok {
			var mib int
			if _, err := fmt.Sscanf(size, "%d", &mib); err != nil {
				return 2, fmt.Errorf("disk %q: bad size", d)
			}
			if err := guest.CreateImage(image, mib); err != nil {
				return 1, err
			}
		}
		config.Disks = append(config.Disks, guest.Disk{Image: image, Serial: serial(image)})
	}
	g, err := guest.Start(ctx, config)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()

	c := g.Command(argv...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = c.Run(ctx)
	var exit *guest.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.Code
		if exit.Signal != 0 {
			code = 128 + exit.Signal
		}
	case err != nil:
		code = 1
	}
	if err == nil || exit != nil {
		for _, pair := range get {
			path, target, _ := strings.Cut(pair, ":")
			if getErr := copyOut(ctx, g, path, target); getErr != nil {
				err, code = errors.Join(err, getErr), 1
			}
		}
	}
	if *console || code == 1 && exit == nil {
		if log, logErr := g.ConsoleLog(); logErr == nil {
			fmt.Fprintf(os.Stderr, "--- console\n%s\n---\n", log)
		}
	}
	if trouble := g.CheckConsole(); trouble != nil {
		err = errors.Join(err, trouble)
		if code == 0 {
			code = 1
		}
	}
	return code, err
}

func copyOut(ctx context.Context, g *guest.Guest, path, target string) error {
	f, err := os.Create(target)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := g.Get(ctx, path, f); err != nil {
		return err
	}
	return f.Close()
}

// serial names a disk after its image, as far as a virtio disk's serial goes.
func serial(image string) string {
	name := filepath.Base(image)
	return name[:min(len(name), 20)]
}
