// SPDX-License-Identifier: Apache-2.0

// Package reader is what "livedump fetch" has executed in a pod that mounts the claim.
package reader

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
)

// ErrUsage: the arguments are wrong.
var ErrUsage = errors.New("usage: livedump-controller read --offset BYTE --length BYTES FILE")

// Args ask Run for a part of a file.
func Args(file string, offset, length int64) []string {
	return []string{"--offset", strconv.FormatInt(offset, 10), "--length", strconv.FormatInt(length, 10), file}
}

// Run writes a part of a file or a device to out.
func Run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("read", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	offset := flags.Int64("offset", 0, "first `byte`")
	length := flags.Int64("length", 0, "how many `bytes`")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if flags.NArg() != 1 || *offset < 0 || *length <= 0 {
		return ErrUsage
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
