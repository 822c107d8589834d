// SPDX-License-Identifier: Apache-2.0

// Command prepare gets everything that judging a kernel's dumps needs, so that a
// test does not have to wait for it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest"
	"livedump.io/test/judge"
)

func main() {
	series := flag.String("kernel", "6.1", "kernel `series`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	kernel, err := guest.FetchKernel(ctx, *series)
	if err == nil {
		err = judge.Prepare(ctx, kernel)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
	fmt.Printf("judge-tools: ready for kernel %s\n", kernel.Release)
}
