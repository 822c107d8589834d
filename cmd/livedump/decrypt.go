// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"livedump.io/internal/convert"
)

// decrypted is what "decrypt --json" prints.
type decrypted struct {
	File    string  `json:"file"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

func newDecrypt() *cobra.Command {
	var ids identities
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "decrypt -i KEY SOURCE FILE",
		Short: "Make the plain dump of an encrypted one",
		Long: `Make the plain dump of an encrypted one, for crash and drgn. SOURCE is a file or a block device;
a flattened stream becomes the dump that it holds.

Everything is authenticated: a file that was changed, cut off or put together from others is refused.
FILE gets its name when it is complete.`,
		Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(ids.files) == 0 {
				return usageError("--identity is required")
			}
			keys, err := ids.read()
			if err != nil {
				return err
			}
			start := time.Now()
			p := newProgress(cmd.ErrOrStderr())
			size, err := convert.Decrypt(cmd.Context(), args[0], args[1], keys, func(done, total int64) {
				p.show("decrypting", uint64(done), uint64(total))
			})
			p.clear()
			if err != nil {
				return err
			}
			d := decrypted{File: args[1], Bytes: size, Seconds: time.Since(start).Seconds()}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), d)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: the plain dump of %s, %s in %.1f s\n", d.File, args[0], bytesText(uint64(d.Bytes)), d.Seconds)
			return err
		},
	}
	ids.flag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}
