// SPDX-License-Identifier: Apache-2.0

package matrix

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livedump.io/test/guest"
)

// TestRowsCoverValues checks that each series has every value of every option it knows.
func TestRowsCoverValues(t *testing.T) {
	type seen map[any]bool
	values := map[string]map[string]seen{}
	names := map[string]bool{}
	for _, r := range Rows() {
		if names[r.Name()] {
			t.Errorf("two rows are named %s", r.Name())
		}
		names[r.Name()] = true
		if values[r.Kernel] == nil {
			values[r.Kernel] = map[string]seen{"cpus": {}, "nodes": {}, "pti": {}, "levels": {}, "huge": {}, "preempt": {}}
		}
		v := values[r.Kernel]
		v["cpus"][r.CPUs], v["nodes"][r.Nodes], v["pti"][r.PTI] = true, true, true
		v["levels"][r.Levels], v["huge"][r.Huge], v["preempt"][r.Preempt] = true, true, true
	}
	common := map[string][]any{"nodes": {1, 2}, "pti": {true, false}, "huge": {true, false}}
	own := map[string]map[string][]any{
		"5.10.0-43": {"cpus": {1, 2, 8}, "levels": {4}, "preempt": {"voluntary"}},
		"6.1":       {"cpus": {1, 2, 8}, "levels": {4, 5}, "preempt": {"none", "voluntary", "full"}},
		"6.12":      {"cpus": {1, 2, 8}, "levels": {4, 5}, "preempt": {"none", "voluntary", "full"}},
		"newest":    {"cpus": {1, 2, 8}, "levels": {4, 5}, "preempt": {"lazy", "full"}},
		"6.1-rt":    {"cpus": {1, 2, 8}, "levels": {4, 5}, "preempt": {"rt"}},
	}
	for kernel, options := range own {
		for _, set := range []map[string][]any{common, options} {
			for option, wanted := range set {
				for _, value := range wanted {
					if !values[kernel][option][value] {
						t.Errorf("no row of %s has %s %v", kernel, option, value)
					}
				}
			}
		}
	}
	if len(values) != len(own) {
		t.Errorf("%d series, %d are known to this test", len(values), len(own))
	}
}

func TestCheckTellsAnotherMachine(t *testing.T) {
	row := Row{Kernel: "6.1", CPUs: 2, Nodes: 2, PTI: true, Levels: 5, Huge: true, Preempt: "full"}
	m := guest.Machine{CPUs: 2, Nodes: 2, PTI: true, Levels: 5, HugeLeaves: 1, Preempt: "full"}
	if err := row.check(&m); err != nil {
		t.Errorf("the row's own machine: %v", err)
	}
	m.Levels, m.HugeLeaves = 4, 0
	err := row.check(&m)
	if err == nil || !strings.Contains(err.Error(), "levels") || !strings.Contains(err.Error(), "1 GiB") {
		t.Errorf("4 levels, no 1 GiB leaves: %v", err)
	}
}

const goodReport = `{"machine":{"release":"6.1.0","cpus":1,"nodes":1,"levels":4,"huge_leaves":0,"pti":false,"preempt":"none"},
"pages":100,"mismatches":0,"lost":0,"unstable":{"pages":3},"tables_restored":true,
"shipped":{"stop_ns":1000000,"readers":"passed","tables_restored":true}}`

func TestReadJudges(t *testing.T) {
	row := Row{Kernel: "6.1", CPUs: 1, Nodes: 1, Levels: 4, Preempt: "none"}
	read := func(text string) (Result, error) {
		file := filepath.Join(t.TempDir(), "truth.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var r Result
		return r, r.read(file, row)
	}
	r, err := read(goodReport)
	if err != nil {
		t.Errorf("a good report: %v", err)
	}
	if r.StopNS != 1000000 || r.Truth.Pages != 100 || r.Truth.Unstable != 3 || !r.TablesRestored {
		t.Errorf("read %+v", r)
	}
	for _, change := range [][2]string{
		{`"mismatches":0`, `"mismatches":1`}, {`"lost":0`, `"lost":1`}, {`"pages":100`, `"pages":0`},
		{`"readers":"passed"`, `"readers":"crash: no tasks"`}, {`"stop_ns":1000000`, `"stop_ns":0`},
		{`"tables_restored":true}`, `"tables_restored":false}`}, {`"preempt":"none"`, `"preempt":"full"`},
		{`"shipped"`, `"other"`},
	} {
		if _, err := read(strings.Replace(goodReport, change[0], change[1], 1)); err == nil {
			t.Errorf("no error with %s", change[1])
		}
	}
}

func TestTableInDocument(t *testing.T) {
	row := Rows()[0]
	results := &Results{}
	results.Put(Result{
		Row: row.Name(), Commit: "abc", Readers: "passed", StopNS: 2500000, TablesRestored: true,
		Machine: &guest.Machine{Release: "5.10.0-43-cloud-amd64"}, Truth: &Truth{Pages: 12, Unstable: 3},
	})
	table := Table(results)
	want := "| 5.10.0-43-cloud-amd64 | 2 | 2 | on | 4 | yes | voluntary | 12 | 0 | 3 | agree | equal | 2.5 ms | abc |"
	if !strings.Contains(table, want+"\n") {
		t.Errorf("no line %q in\n%s", want, table)
	}
	columns := strings.Count(strings.SplitN(table, "\n", 2)[0], "|")
	for _, line := range strings.Split(strings.TrimSpace(table), "\n") {
		if strings.Count(line, "|") != columns {
			t.Errorf("not %d columns: %s", columns-1, line)
		}
	}
	document := "before\n" + tableBegin + "\nold\n" + tableEnd + "\nafter\n"
	got, err := Insert(document, table)
	if err != nil || strings.Contains(got, "old") || !strings.HasPrefix(got, "before\n") || !strings.HasSuffix(got, "\nafter\n") {
		t.Errorf("Insert: %v\n%s", err, got)
	}
	if _, err := Insert("nothing", table); err == nil {
		t.Error("Insert: no error without marks")
	}
}
