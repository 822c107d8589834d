// SPDX-License-Identifier: Apache-2.0

package matrix

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"livedump.io/test/guest"
)

// Result is what became of a row.
type Result struct {
	Row string `json:"row"`
	// Commit is what it ran on; "+" at its end: with changes that were not committed.
	Commit  string    `json:"commit"`
	Ended   time.Time `json:"ended"`
	Seconds int       `json:"seconds"`
	// Machine is what the guest turned out to be; nil if it did not come so far.
	Machine *guest.Machine `json:"machine,omitempty"`
	// Truth is the dump that was compared with hashes of the stop, page by page.
	Truth *Truth `json:"truth,omitempty"`
	// Readers is "passed", or why not.
	Readers string `json:"readers"`
	// StopNS is the stop of the dump that the readers judged, made by the module as it is shipped.
	StopNS uint64 `json:"stop_ns"`
	// TablesRestored: page tables are equal before and after, of both dumps.
	TablesRestored bool `json:"tables_restored"`
	// Error is empty if the row passed.
	Error string `json:"error,omitempty"`
}

// Truth counts pages.
type Truth struct {
	Pages      uint64 `json:"pages"`
	Mismatches uint64 `json:"mismatches"`
	Lost       uint64 `json:"lost"`
	// Unstable pages are flagged as not from the instant.
	Unstable uint64 `json:"unstable"`
}

// Results is the file that a run of the matrix goes on with.
type Results struct {
	Rows []Result `json:"rows"`
}

// ReadResults reads the file; no file is no results.
func ReadResults(file string) (*Results, error) {
	r := &Results{}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// Of returns the result of a row, nil if it has none.
func (r *Results) Of(row string) *Result {
	i := slices.IndexFunc(r.Rows, func(one Result) bool { return one.Row == row })
	if i < 0 {
		return nil
	}
	return &r.Rows[i]
}

// Put replaces the result of a row.
func (r *Results) Put(one Result) {
	if old := r.Of(one.Row); old != nil {
		*old = one
		return
	}
	r.Rows = append(r.Rows, one)
}

// Write replaces the file as a whole, so that a stopped run leaves a good one.
func (r *Results) Write(file string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
