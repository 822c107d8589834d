// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"livedump.io/internal/agefile"
	"livedump.io/internal/convert"
	"livedump.io/internal/format"
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

	Parts []convertedPart `json:"parts,omitempty"`
}

type convertedPart struct {
	File   string `json:"file"`
	Bytes  uint64 `json:"bytes"`
	SHA256 string `json:"sha256,omitempty"`
}

func newConvert() *cobra.Command {
	var o convert.Options
	var compression, form string
	var ids identities
	var recipients []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "convert SOURCE... FILE",
		Short: "Make a dump of another: in another format or compression, or with fewer pages",
		Long: `Make a dump of another: in another format or compression, or with fewer pages. SOURCE is a
kdump-compressed dump, plain or flattened, or an ELF vmcore (of livedump, /proc/vmcore, makedumpfile -E or QEMU).

A flattened stream becomes the plain dump that it holds, byte for byte, if nothing else is asked for.

Of a split dump all parts are named, in any order. --split 2 makes such a one: FILE.1 and FILE.2, which readers take
together.

An encrypted SOURCE takes --identity; --recipient encrypts FILE, which then is an age file.

An ELF vmcore is not compressed, and has holes where there are no pages.

FILE gets its name when it is complete. Pages are left out by their classes, which dumps of livedump
know; of others only zero pages can be left out.`,
		Args: minimumArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Codec, err = kdump.ParseCodec(compression); err != nil {
				return wrongUsage{err}
			}
			if o.Parts < 1 || o.Parts > kdump.MaxParts {
				return usageError("--split %d: want 1 to %d", o.Parts, kdump.MaxParts)
			}
			if o.DumpLevel < 0 || o.DumpLevel > 31 {
				return usageError("--dump-level %d: want 0 to 31", o.DumpLevel)
			}
			if o.Format, err = format.ParseFormat(form); err != nil {
				return wrongUsage{err}
			}
			if o.Recipients, err = agefile.ParseRecipients(recipients); err != nil {
				return usageError("--recipient: %w", err)
			}
			keys, err := ids.read()
			if err != nil {
				return err
			}
			// A write that waits in the kernel keeps the processor that Go has given it.
			if o.Workers == 0 {
				o.Workers = runtime.GOMAXPROCS(0)
			}
			runtime.GOMAXPROCS(max(o.Workers, runtime.GOMAXPROCS(0)) + writersWaiting)
			start := time.Now()
			progress := newProgress(cmd.ErrOrStderr())
			sources, file := args[:len(args)-1], args[len(args)-1]
			flattened, err := convert.IsFlattened(sources[0])
			if err != nil {
				return err
			}
			if flattened && len(sources) == 1 && !changesContent(cmd) && o.Format != format.Flattened {
				return rearrange(cmd, sources[0], file, progress, asJSON)
			}
			s, err := convert.OpenAll(sources, keys...)
			if err != nil {
				return err
			}
			defer s.Close()
			if o.Format == format.Natural {
				o.Format = format.Kdump
			}
			stop := func() {}
			o.Progress = func(ask func() kdump.Progress) { stop = progress.follow(ask) }
			sum, err := convert.Run(cmd.Context(), s, file, o)
			stop()
			progress.clear()
			if err != nil {
				return err
			}
			c := converted{File: file, Format: o.Format.String(), Bytes: sum.Bytes, Pages: sum.Pages, Lost: sum.Lost,
				Seconds: time.Since(start).Seconds()}
			for i, p := range sum.Parts {
				part := convertedPart{File: convert.PartName(file, i), Bytes: p.Bytes}
				if o.Verify || len(o.Recipients) > 0 {
					part.SHA256 = fmt.Sprintf("%x", p.SHA256)
				}
				c.Parts = append(c.Parts, part)
			}
			if (o.Verify || len(o.Recipients) > 0) && c.Parts == nil {
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
	cmd.Flags().StringVar(&form, "format", "", "`format` of the result: kdump, flattened or elf (default: kdump)")
	cmd.Flags().StringVar(&compression, "compression", "zstd", "`codec` of the pages: zstd, zlib, snappy or none")
	cmd.Flags().IntVar(&o.Level, "level", 0, "`level` of zstd (1 to 4) or zlib (1 to 9), 0: the fastest")
	cmd.Flags().IntVar(&o.DumpLevel, "dump-level", 0, "page classes to leave out besides those that are left out already, makedumpfile's `bits`")
	cmd.Flags().IntVar(&o.Parts, "split", 1, "split the result among so many `files`: FILE.1, FILE.2, ...")
	cmd.Flags().IntVar(&o.Workers, "workers", 0, "compress so many pages at once (0: one for each CPU)")
	cmd.Flags().BoolVar(&o.Verify, "verify", false, "read the result back and compare it with what was written")
	cmd.Flags().StringArrayVarP(&recipients, "recipient", "r", nil, "encrypt the result for this public `key` of age-keygen (age1...); may be given several times")
	ids.flag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

// writersWaiting is how many writes are in the kernel most of the time.
const writersWaiting = 2

// changesContent says whether flags ask for other bytes than the source's.
func changesContent(cmd *cobra.Command) bool {
	for _, name := range []string{"compression", "level", "dump-level", "format", "recipient", "split"} {
		if cmd.Flags().Changed(name) {
			return true
		}
	}
	return false
}

// rearrange makes a plain dump of a flattened stream.
func rearrange(cmd *cobra.Command, source, path string, p *progress, asJSON bool) error {
	start := time.Now()
	size, err := convert.Rearrange(cmd.Context(), source, path, func(done, total int64) {
		p.show("writing", uint64(done), uint64(total))
	})
	p.clear()
	if err != nil {
		return err
	}
	took := time.Since(start).Seconds()
	if asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]any{"file": path, "format": "as in the flattened stream", "bytes": size, "seconds": took})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: the plain dump of %s, %s in %.1f s\n", path, source, bytesText(uint64(size)), took)
	return err
}
