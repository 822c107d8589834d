// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"livedump.io/internal/convert"
	"livedump.io/internal/kdump"
)

func newVerify() *cobra.Command {
	var ids identities
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check that a dump of livedump is whole: structure, checksums, every page",
		Long: `Check that a dump of livedump is whole: every byte is compared with the checksums that were
made when it was written, every page is decompressed and compared with its CRC.

FILE is a file or a block device. The exit status is 1 if anything is wrong; damaged pages are named
by their page frame numbers. An encrypted dump takes --identity: every cell of it is then authenticated, and
what is inside is checked like any dump.`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := ids.read()
			if err != nil {
				return err
			}
			r, err := convert.Open(args[0], keys...)
			if err != nil {
				return err
			}
			defer r.Close()
			progress := newProgress(cmd.ErrOrStderr())
			report, err := r.Verify(cmd.Context(), kdump.VerifyOptions{Progress: progress.verifying})
			progress.clear()
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = printReport(cmd.OutOrStdout(), args[0], &report)
			}
			if err == nil && !report.OK {
				err = errReported
			}
			return err
		},
	}
	ids.flag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

// shownDamage is how many damaged pieces and pages are printed for people.
const shownDamage = 20

func printReport(out io.Writer, name string, r *kdump.Report) error {
	if r.OK {
		_, err := fmt.Fprintf(out, "%s: good: %d pages, %d lost, %s\nsha256 %s\n",
			name, r.Pages, r.Lost, bytesText(r.Bytes), r.SHA256)
		return err
	}
	fmt.Fprintf(out, "%s: DAMAGED\n", name)
	for _, p := range r.Problems {
		fmt.Fprintf(out, "  %s\n", p)
	}
	if n := len(r.DamagedChunks); n > 0 {
		fmt.Fprintf(out, "  %d pieces of the file do not match their checksums:\n", n)
		for i, c := range r.DamagedChunks {
			if i == shownDamage {
				fmt.Fprintf(out, "    ... (--json has all)\n")
				break
			}
			fmt.Fprintf(out, "    bytes %d-%d\n", c.Start, c.End-1)
		}
	}
	if r.DamagedPageCount == 0 {
		fmt.Fprintf(out, "  all %d pages still match their CRCs\n", r.Pages)
	} else {
		fmt.Fprintf(out, "  %d of %d pages are damaged:\n", r.DamagedPageCount, r.Pages)
		for i, p := range r.DamagedPages {
			if i == shownDamage {
				fmt.Fprintf(out, "    ... (--json has up to %d)\n", kdump.MaxListedPages)
				break
			}
			fmt.Fprintf(out, "    page frame %#x: %s\n", p.PFN, p.Problem)
		}
	}
	_, err := fmt.Fprintf(out, "sha256 %s\n", r.SHA256)
	return err
}
