// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

// read writes a part of a file or a device: "livedump fetch" has it executed in a pod that mounts the claim.
func read(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("livedump-controller read", flag.ContinueOnError)
	flags.SetOutput(out)
	offset := flags.Int64("offset", 0, "first `byte`")
	length := flags.Int64("length", 0, "how many `bytes`")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return usageError{err}
	}
	if flags.NArg() != 1 || *offset < 0 || *length <= 0 {
		return usageError{errors.New("usage: livedump-controller read --offset BYTE --length BYTES FILE")}
	}
	f, err := os.Open(flags.Arg(0))
	if err != nil {
		return err
	}
	defer f.Close() // only read
	// Large reads, for what comes is sent piece by piece.
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, io.NewSectionReader(f, *offset, *length), make([]byte, 1<<20))
	if err == nil && n < *length {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%s: %d bytes from %d on: %w", flags.Arg(0), *length, *offset, err)
	}
	return nil
}
