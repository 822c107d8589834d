// SPDX-License-Identifier: Apache-2.0

// Command livedump-controller runs the controller of LiveDumps, or, as
// "livedump-controller hold", the process of a holder pod.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	ctrl "sigs.k8s.io/controller-runtime"

	"livedump.io/internal/fetch/reader"
)

// version is set at link time.
var version = "dev"

const usage = `usage: livedump-controller [flags]   run the controller (--help lists the flags)
       livedump-controller hold      wait for SIGTERM; what a holder pod runs
       livedump-controller read      write a part of a device or file; what "livedump fetch" executes in a reader pod
       livedump-controller uninstall [flags]
                                     end all LiveDumps and leave nothing behind; run it before the release is removed
       livedump-controller --version
`

func main() {
	// All of them end on SIGTERM and SIGINT.
	ctx := ctrl.SetupSignalHandler()
	err := func() error {
		args := os.Args[1:]
		if len(args) > 0 && args[0] == "hold" {
			if len(args) > 1 {
				return usageError{fmt.Errorf("hold takes no arguments, not %q", args[1:])}
			}
			// The device is attached to the node as long as this process lives; it is never opened.
			<-ctx.Done()
			return nil
		}
		if len(args) > 0 && args[0] == "read" {
			err := reader.Run(args[1:], os.Stdout)
			if errors.Is(err, reader.ErrUsage) {
				err = usageError{err}
			}
			return err
		}
		if len(args) > 0 && args[0] == "uninstall" {
			return uninstall(ctx, args[1:], os.Stdout)
		}
		return run(ctx, args, os.Stdout)
	}()
	var wrong usageError
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintf(os.Stderr, "livedump-controller: %v\n", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintf(os.Stderr, "livedump-controller: %v\n", err)
		os.Exit(1)
	}
}

// usageError is the caller's mistake: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func printVersion(out io.Writer) error {
	_, err := fmt.Fprintf(out, "livedump-controller %s\n", version)
	return err
}
