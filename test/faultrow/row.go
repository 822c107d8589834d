// SPDX-License-Identifier: Apache-2.0

// Package faultrow is the table of what goes wrong in the tests, and what comes of it.
package faultrow

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// Row of the table.
type Row struct {
	Fault    string `json:"fault"`
	Expected string `json:"expected"`
	Seen     string `json:"seen"`
	// TablesEqual: the kernel's page tables after it are those of before.
	TablesEqual bool `json:"tables_equal"`
	// Header is what block 0 of the target says: dump, in progress, failed, or empty.
	Header string `json:"header"`
	OK     bool   `json:"ok"`
}

// Explain adds to what was seen what was wrong with it.
func (r *Row) Explain(err error) {
	r.Seen = strings.TrimPrefix(r.Seen+": "+strings.NewReplacer("\n", "; ", "|", "/").Replace(err.Error()), ": ")
}

// Print shows rows as a table in Markdown, as docs/reliability.md has it.
func Print(rows []Row) {
	yes := map[bool]string{true: "yes", false: "no"}
	fmt.Println("\n| fault | expected | seen | page tables equal | block 0 | as expected |\n| --- | --- | --- | --- | --- | --- |")
	for _, r := range rows {
		fmt.Printf("| %s | %s | %s | %s | %s | %s |\n", r.Fault, r.Expected, r.Seen, yes[r.TablesEqual], r.Header, yes[r.OK])
	}
	fmt.Println()
}

// HeaderDump is what Header says of a target that readers take for a dump.
const HeaderDump = "dump"

// Header is what block 0 of a disk's image says.
func Header(image string) (string, error) {
	f, err := os.Open(image)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 64)
	if _, err := f.ReadAt(head, 0); err != nil {
		return "", err
	}
	switch {
	case bytes.HasPrefix(head, []byte("KDUMP   ")):
		return HeaderDump, nil
	case bytes.HasPrefix(head, []byte("LIVEDUMP in progress")):
		return "in progress", nil
	case bytes.HasPrefix(head, []byte("LIVEDUMP failed")):
		return "failed", nil
	case len(bytes.Trim(head, "\x00")) == 0:
		return "empty", nil
	}
	return fmt.Sprintf("%q", head[:20]), nil
}
