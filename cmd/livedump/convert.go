// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"livedump.io/internal/convert"
	"livedump.io/internal/kdump"
)

// converted is what "convert --json" prints.
type converted struct {
	File    string  `json:"file"`
	Format  string  `json:"format"`
	Bytes   uint64  `json:"bytes"`
	Pages   uint64  `json:"pages"`
	Lost    uint64  `json:"lost"`
	Seconds float64 `json:"seconds"`
	SHA256  string  `json:"sha256,omitempty"`
}

func newConvert() *cobra.Command {
	var o convert.Options
	var compression string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "convert SOURCE FILE",
		Short: "Make a kdump-compressed dump of a dump or an ELF vmcore",
		Long: `Make a kdump-compressed dump of another dump, with another compression or with fewer pages, or of
an ELF vmcore (of /proc/vmcore, makedumpfile -E or QEMU).

FILE gets its name when it is complete. Pages are left out by their classes, which dumps of livedump
know; of others only zero pages can be left out.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Codec, err = kdump.ParseCodec(compression); err != nil {
				return err
			}
			if o.DumpLevel < 0 || o.DumpLevel > 31 {
				return fmt.Errorf("--dump-level %d: want 0 to 31", o.DumpLevel)
			}
			s, err := convert.Open(args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			start := time.Now()
			progress := newProgress(cmd.ErrOrStderr())
			stop := func() {}
			o.Progress = func(ask func() kdump.Progress) { stop = progress.follow(ask) }
			sum, err := convert.Run(cmd.Context(), s, args[1], o)
			stop()
			progress.clear()
			if err != nil {
				return err
			}
			c := converted{File: args[1], Format: "kdump-compressed v6", Bytes: sum.Bytes, Pages: sum.Pages, Lost: sum.Lost,
				Seconds: time.Since(start).Seconds()}
			if o.Verify {
				c.SHA256 = fmt.Sprintf("%x", sum.SHA256)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), c)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s of %s, %d pages, %d lost, %s in %.1f s\n",
				c.File, c.Format, s.Format, c.Pages, c.Lost, bytesText(c.Bytes), c.Seconds)
			return err
		},
	}
	cmd.Flags().StringVar(&compression, "compression", "zstd", "`codec` of the pages: zstd, zlib, snappy or none")
	cmd.Flags().IntVar(&o.Level, "level", 0, "`level` of zstd (1 to 4) or zlib (1 to 9), 0: the fastest")
	cmd.Flags().IntVar(&o.DumpLevel, "dump-level", 0, "page classes to leave out besides those that are left out already, makedumpfile's `bits`")
	cmd.Flags().IntVar(&o.Workers, "workers", 0, "compress so many pages at once (0: one for each CPU)")
	cmd.Flags().BoolVar(&o.Verify, "verify", false, "read the result back and compare it with what was written")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}
