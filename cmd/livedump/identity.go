// SPDX-License-Identifier: Apache-2.0

package main

import (
	"filippo.io/age"
	"github.com/spf13/cobra"

	"livedump.io/internal/agefile"
)

// identities are the private keys that a command was given.
type identities struct{ files []string }

func (i *identities) flag(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&i.files, "identity", "i", nil, "`file` with a private key of age-keygen, for an encrypted dump; may be given several times")
}

func (i *identities) read() ([]age.Identity, error) {
	var all []age.Identity
	for _, f := range i.files {
		ids, err := agefile.ReadIdentities(f)
		if err != nil {
			return nil, err
		}
		all = append(all, ids...)
	}
	return all, nil
}
