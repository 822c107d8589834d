// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"livedump.io/internal/agefile"
	"livedump.io/internal/convert"
	"livedump.io/internal/kdump"
)

func newInspect() *cobra.Command {
	var ids identities
	var asJSON, allVMCoreInfo bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what a dump says of itself: kernel, CPUs, notes, counts of pages",
		Long: `Show what a dump says of itself: kernel, CPUs, notes, counts of pages.

FILE is a file or a block device. The checksums are not looked at: that is what "livedump verify" is for.`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := ids.read()
			if err != nil {
				return err
			}
			if len(keys) == 0 {
				// Without a key there is something to say of an encrypted dump too.
				if e, err := agefile.InspectFile(args[0]); err == nil {
					return printEncrypted(cmd.OutOrStdout(), args[0], e, asJSON)
				}
			}
			r, err := convert.Open(args[0], keys...)
			if err != nil {
				return err
			}
			defer r.Close()
			info, err := r.Info()
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, info)
			}
			if allVMCoreInfo {
				return printVMCoreInfo(out, info.VMCoreInfo)
			}
			return printInfo(out, args[0], &info)
		},
	}
	ids.flag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	cmd.Flags().BoolVar(&allVMCoreInfo, "vmcoreinfo", false, "print only VMCOREINFO, all of it")
	cmd.MarkFlagsMutuallyExclusive("json", "vmcoreinfo")
	return cmd
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// encryptedInfo is what "inspect --json" prints of an encrypted dump without a key.
type encryptedInfo struct {
	Format     string   `json:"format"`
	Bytes      int64    `json:"bytes"`
	Recipients []string `json:"recipients"`
	Session    string   `json:"session,omitempty"`
}

func printEncrypted(out io.Writer, name string, e agefile.Info, asJSON bool) error {
	i := encryptedInfo{Format: "age", Bytes: e.Size, Recipients: e.Recipients}
	if e.Own {
		i.Session = e.Owner.Session.String()
	}
	if asJSON {
		return printJSON(out, i)
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "file\t%s\nformat\tencrypted with age\nsize\t%s\n", name, bytesText(uint64(i.Bytes)))
	if e.Own {
		fmt.Fprintf(w, "written by\tlivedump, session %s\n", i.Session)
	} else {
		fmt.Fprint(w, "written by\tanother program\n")
	}
	fmt.Fprintf(w, "recipients\t%d (%s)\n", len(i.Recipients), printable(strings.Join(i.Recipients, ", ")))
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nWith the private key (-i) there is more to say. Nothing of the above has been authenticated without it.\n")
	return err
}

func printVMCoreInfo(out io.Writer, v kdump.VMCoreInfo) error {
	for _, key := range slices.Sorted(maps.Keys(v)) {
		if _, err := fmt.Fprintf(out, "%s=%s\n", key, v[key]); err != nil {
			return err
		}
	}
	return nil
}

// shownVMCoreInfo are the keys that tell kernels apart and that addresses depend on.
var shownVMCoreInfo = []string{"OSRELEASE", "BUILD-ID", "PAGESIZE", "KERNELOFFSET", "NUMBER(phys_base)",
	"NUMBER(pgtable_l5_enabled)", "CRASHTIME"}

func printInfo(out io.Writer, name string, i *kdump.Info) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(key, format string, args ...any) { fmt.Fprintf(w, key+"\t"+format+"\n", args...) }

	row("file", "%s", name)
	row("format", "%s, compression %s", i.Format, i.Compression)
	row("size", "%s", bytesText(uint64(i.Bytes)))
	if l := i.Livedump; l != nil {
		row("written by", "livedump, session %s", l.Session)
		row("frozen at", "%s", l.FrozenAt.Format(time.RFC3339Nano))
		row("stop", "%v", time.Duration(l.StopNanosecs))
	} else {
		row("written by", "another program")
		row("timestamp", "%s", i.Timestamp.Format(time.RFC3339))
	}
	row("host", "%s", printable(i.Utsname.Nodename))
	row("kernel", "%s", printable(strings.Join([]string{
		i.Utsname.Sysname, i.Utsname.Release, i.Utsname.Version, i.Utsname.Machine}, " ")))
	row("CPUs", "%d", i.CPUs)
	row("dump level", "%d (%s)", i.DumpLevel, levelText(i.DumpLevel))
	row("max_mapnr", "%#x", i.MaxPFN)
	row("RAM", "%s", pagesText(i.RAMPages))
	row("dumped", "%s", pagesText(i.DumpedPages))
	if l := i.Livedump; l != nil {
		row("  full of zeros", "%d pages", l.ZeroPages)
		row("  copied before a write", "%d pages", l.CopiedPages)
		row("  uncovered", "%d pages (may not be from the one instant)", l.UncoveredPages)
		row("lost", "%d pages", l.LostPages)
		for n, r := range l.LostRanges {
			if n == 10 {
				row("", "... and %d ranges more (--json has all)", len(l.LostRanges)-n)
				break
			}
			row("", "page frames %#x-%#x", r.Start, r.End-1)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}

	if l := i.Livedump; l != nil && len(l.ClassPages)+len(l.DumpedByClass) > 0 {
		fmt.Fprintln(out, "\npages by class, as of the stop:")
		fmt.Fprintln(w, "  class\tin RAM\tdumped")
		classes := map[string]bool{}
		for _, m := range []map[string]uint64{l.ClassPages, l.DumpedByClass} {
			for c := range m {
				classes[c] = true
			}
		}
		for _, c := range slices.Sorted(maps.Keys(classes)) {
			fmt.Fprintf(w, "  %s\t%d\t%d\n", c, l.ClassPages[c], l.DumpedByClass[c])
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}

	fmt.Fprintf(out, "\nELF notes: %d\n", len(i.Notes))
	for _, r := range i.Registers {
		fmt.Fprintf(w, "  CPU %d\tRIP %016x\tRSP %016x\tCS %02x\n", r.CPU, r.RIP, r.RSP, r.CS)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nVMCOREINFO: %d keys (--vmcoreinfo prints all)\n", len(i.VMCoreInfo))
	for _, key := range shownVMCoreInfo {
		if v, ok := i.VMCoreInfo[key]; ok {
			fmt.Fprintf(w, "  %s\t%s\n", key, printable(v))
		}
	}
	fmt.Fprintf(w, "  phys_base of the header\t%d\n", i.PhysBase)
	if err := w.Flush(); err != nil {
		return err
	}
	for _, warning := range i.Warnings {
		fmt.Fprintf(out, "\nwarning: %s\n", warning)
	}
	return nil
}

func levelText(level int) string {
	var without []string
	for bit, name := range []string{"zero pages", "page cache", "private page cache", "user pages", "free pages"} {
		if level&(1<<bit) != 0 {
			without = append(without, name)
		}
	}
	if len(without) == 0 {
		return "everything"
	}
	return "without " + strings.Join(without, ", ")
}

func pagesText(n uint64) string {
	return fmt.Sprintf("%d pages, %s", n, bytesText(n*kdump.PageSize))
}

func bytesText(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	f, u := float64(n), -1
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	return fmt.Sprintf("%.1f %ciB (%d bytes)", f, units[u], n)
}

// printable keeps what a dump says from talking to the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
