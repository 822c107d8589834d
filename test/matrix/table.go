// SPDX-License-Identifier: Apache-2.0

package matrix

import (
	"fmt"
	"strings"
	"time"
)

const (
	tableBegin = "<!-- matrix: begin -->"
	tableEnd   = "<!-- matrix: end -->"
)

// Table is the results of all rows as a Markdown table, in the order of Rows.
func Table(results *Results) string {
	var s strings.Builder
	s.WriteString("| kernel | CPUs | nodes | PTI | levels | 1 GiB | preemption | pages compared | differ | unstable | readers | tables | stop | commit |\n")
	s.WriteString("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	yes := func(b bool, yes, no string) string {
		if b {
			return yes
		}
		return no
	}
	for _, row := range Rows() {
		release := row.Kernel
		r := results.Of(row.Name())
		if r != nil && r.Machine != nil {
			release = r.Machine.Release
		}
		fmt.Fprintf(&s, "| %s | %d | %d | %s | %d | %s | %s |", release, row.CPUs, row.Nodes,
			yes(row.PTI, "on", "off"), row.Levels, yes(row.Huge, "yes", "no"), row.Preempt)
		if r == nil {
			s.WriteString(" not run | | | | | | |\n")
			continue
		}
		if r.Truth == nil {
			s.WriteString(" failed | |")
		} else {
			fmt.Fprintf(&s, " %d | %d | %d |", r.Truth.Pages, r.Truth.Mismatches, r.Truth.Unstable)
		}
		if r.Truth == nil {
			s.WriteString(" |")
		}
		fmt.Fprintf(&s, " %s | %s | %s | %s |\n", yes(r.Readers == "passed", "agree", yes(r.Readers == "not run", "not run", "fail")),
			yes(r.TablesRestored, "equal", "differ"), yes(r.StopNS > 0, stop(r.StopNS), "-"), r.Commit)
	}
	return s.String()
}

func stop(ns uint64) string {
	return fmt.Sprintf("%.1f ms", float64(ns)/float64(time.Millisecond))
}

// Problems lists what failed, a line each, empty if nothing did.
func Problems(results *Results) string {
	var s strings.Builder
	for _, row := range Rows() {
		if r := results.Of(row.Name()); r != nil && r.Error != "" {
			first, _, _ := strings.Cut(r.Error, "\n")
			fmt.Fprintf(&s, "- %s: %s\n", r.Row, first)
		}
	}
	return s.String()
}

// Insert replaces what is between the table's marks in a document.
func Insert(document, table string) (string, error) {
	before, rest, ok := strings.Cut(document, tableBegin)
	if !ok {
		return "", fmt.Errorf("the document has no %s", tableBegin)
	}
	_, after, ok := strings.Cut(rest, tableEnd)
	if !ok {
		return "", fmt.Errorf("the document has no %s", tableEnd)
	}
	return before + tableBegin + "\n" + table + tableEnd + after, nil
}
