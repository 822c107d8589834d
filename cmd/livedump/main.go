// SPDX-License-Identifier: Apache-2.0

// Command livedump looks at dumps: what they are, and whether they are whole; converts and decrypts them, and fetches them from a
// cluster. By the name of kubectl-livedump it is a plugin of kubectl.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
)

// version is git describe of the source, set by the linker.
var version = "dev"

// errReported is for a command that has already said what is wrong.
var errReported = errors.New("reported")

// wrongUsage is the caller's mistake: exit status 2. Everything else that fails has 1.
type wrongUsage struct{ error }

func (e wrongUsage) Unwrap() error { return e.error }

func usageError(format string, args ...any) error { return wrongUsage{fmt.Errorf(format, args...)} }

// exactArgs is cobra.ExactArgs with the exit status of a mistake.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(cmd, args); err != nil {
			return usageError("%w\nusage: %s", err, cmd.UseLine())
		}
		return nil
	}
}

// minimumArgs is cobra.MinimumNArgs with the exit status of a mistake.
func minimumArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.MinimumNArgs(n)(cmd, args); err != nil {
			return usageError("%w\nusage: %s", err, cmd.UseLine())
		}
		return nil
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errReported) {
			fmt.Fprintln(os.Stderr, "livedump:", err)
		}
		stop()
		if errors.As(err, new(wrongUsage)) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "livedump",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: programName(os.Args[0])},
		Short:         "Look at dumps of live kernels",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          exactArgs(0),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(newInspect(), newVerify(), newConvert(), newDecrypt(), newFetch(), newDmesg(), newReceive(), newVersion())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return wrongUsage{err} })
	return root
}

// programName is "kubectl livedump" for the kubectl plugin, which is this program by another name.
func programName(arg0 string) string {
	if filepath.Base(arg0) == "kubectl-livedump" {
		return "kubectl livedump"
	}
	return "livedump"
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "livedump %s %s/%s, %s\n", version, runtime.GOOS, runtime.GOARCH, runtime.Version())
			return err
		},
	}
}
