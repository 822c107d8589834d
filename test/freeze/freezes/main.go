// SPDX-License-Identifier: Apache-2.0

// freezes freezes and thaws the machine that it runs on a number of times and prints
// the module's statistics of each freeze, as a line of JSON. It reads the pages only if
// it is told to, and keeps none. It runs in a guest; test/freeze tells it what to do.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/internal/session"
)

func main() {
	count := flag.Int("n", 1, "freezes")
	tasks := flag.Int("tasks", 0, "threads that sleep meanwhile")
	methods := flag.String("methods", "", "comma-separated values of the test build's parameter `method`, with the number of freezes for each (level:9,eager:5); empty: leave it")
	read := flag.Bool("read", false, "fetch every page, as a dump would")
	flag.Parse()
	if err := run(*count, *tasks, *methods, *read); err != nil {
		fmt.Fprintln(os.Stderr, "freezes:", err)
		os.Exit(1)
	}
}

const methodParameter = "/sys/module/livedump/parameters/method"

func run(count, tasks int, methods string, read bool) error {
	release, err := sleepers(tasks)
	if err != nil {
		return err
	}
	defer release()
	out := json.NewEncoder(os.Stdout)
	for _, word := range strings.Split(methods, ",") {
		method, number, ok := strings.Cut(word, ":")
		if ok {
			if count, err = strconv.Atoi(number); err != nil {
				return err
			}
		}
		if method != "" {
			if err := os.WriteFile(methodParameter, []byte(method), 0); err != nil {
				return err
			}
		}
		for range count {
			st, err := freeze(read)
			if err != nil {
				return err
			}
			if err := out.Encode(line{Method: method, Stats: st}); err != nil {
				return err
			}
		}
	}
	return nil
}

// line is one freeze.
type line struct {
	Method string
	session.Stats
}

// freeze runs one session.
func freeze(read bool) (st session.Stats, err error) {
	d, err := session.Open("/dev/livedump")
	if err != nil {
		return st, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	// A page that is lost does not matter here, but an early end would.
	if _, err := d.Prepare(session.Options{Level: session.ExcludeAll, Mode: session.BestEffort}); err != nil {
		return st, err
	}
	if _, err := d.Freeze(); err != nil {
		return st, err
	}
	if read {
		if err := fetch(d); err != nil {
			return st, err
		}
	}
	if err := d.Thaw(); err != nil {
		return st, err
	}
	return d.Stats()
}

func fetch(d *session.Device) (err error) {
	b, err := session.NewBuffer(session.MaxBatch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Free()) }()
	for {
		n, err := d.Next(b.Data, b.Pages)
		if err != nil || n == 0 {
			return err
		}
	}
}

// sleepers starts threads that sleep in read(2) of a pipe, each with a kernel stack.
func sleepers(n int) (release func(), err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	for range n {
		go func() {
			runtime.LockOSThread()
			ready <- struct{}{}
			_, _ = unix.Read(p[0], make([]byte, 1))
		}()
		<-ready
	}
	return func() { unix.Close(p[1]) }, nil
}
