// SPDX-License-Identifier: Apache-2.0

// Command table writes the results of the matrix into its table in docs/kernels.md.
package main

import (
	"flag"
	"fmt"
	"os"

	"livedump.io/test/matrix"
)

func main() {
	results := flag.String("results", "out/matrix.json", "`file` of the results")
	document := flag.String("document", "docs/kernels.md", "`file` with the table")
	flag.Parse()
	if err := run(*results, *document); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func run(results, document string) error {
	r, err := matrix.ReadResults(results)
	if err != nil {
		return err
	}
	if len(r.Rows) == 0 {
		return fmt.Errorf("%s has no results: run make test-matrix", results)
	}
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	table := matrix.Table(r)
	if problems := matrix.Problems(r); problems != "" {
		table += "\n" + problems
	}
	changed, err := matrix.Insert(string(text), table)
	if err != nil {
		return fmt.Errorf("%s: %w", document, err)
	}
	return os.WriteFile(document, []byte(changed), 0o644)
}
