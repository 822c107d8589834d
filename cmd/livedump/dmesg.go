// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livedump.io/internal/convert"
	"livedump.io/internal/printk"
)

func newDmesg() *cobra.Command {
	var ids identities
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "dmesg FILE...",
		Short: "Print the kernel's log from a dump or an ELF vmcore",
		Long: `Print the kernel's log as it was at the instant of the dump. VMCOREINFO in the dump is enough for
that: no debug information of the kernel is needed. Of a split dump name all parts.`,
		Args: minimumArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := ids.read()
			if err != nil {
				return err
			}
			s, err := convert.OpenAll(args, keys...)
			if err != nil {
				return err
			}
			defer s.Close()
			m, err := s.Memory()
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			show := func(r printk.Record) error {
				for line := range strings.SplitSeq(strings.TrimSuffix(r.Text, "\n"), "\n") {
					fmt.Fprintf(out, "[%5d.%06d] %s\n", r.Time/time.Second, r.Time%time.Second/time.Microsecond, escaped(line))
				}
				return nil
			}
			if asJSON { // one object each line: a log can be long
				e := json.NewEncoder(out)
				show = func(r printk.Record) error { return e.Encode(r) }
			}
			err = printk.Read(m, show)
			if err = errors.Join(err, out.Flush()); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return nil
		},
	}
	ids.flag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each message as a JSON object on a line")
	return cmd
}

// escaped keeps messages from talking to the terminal, as the kernel itself does.
func escaped(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c >= 0x7f || c == '\\' {
			fmt.Fprintf(&b, "\\x%02x", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
