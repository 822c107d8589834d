// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// MemoryState is what a session must leave as it was.
type MemoryState struct {
	Tables PageTables
	// DirectMap has the lines of /proc/meminfo that count the direct map's leaves by size.
	DirectMap string
}

var directMapLine = regexp.MustCompile(`(?m)^DirectMap.*$`)

// SettledMemoryState looks at page tables that have settled. kmod/test's module must be loaded.
func (g *Guest) SettledMemoryState(ctx context.Context) (MemoryState, error) {
	tables, err := g.SettledPageTables(ctx)
	if err != nil {
		return MemoryState{}, err
	}
	meminfo, err := g.ReadFile(ctx, "/proc/meminfo")
	if err != nil {
		return MemoryState{}, err
	}
	lines := directMapLine.FindAllString(string(meminfo), -1)
	if len(lines) == 0 {
		return MemoryState{}, errors.New("/proc/meminfo has no DirectMap lines")
	}
	return MemoryState{tables, strings.Join(lines, "\n")}, nil
}

// Compare returns an error if the state later is another one. Regions that change by themselves are left out.
func (s MemoryState) Compare(later MemoryState) error {
	var problems []error
	if err := s.Tables.Compare(later.Tables, StableRegions...); err != nil {
		problems = append(problems, err)
	}
	if s.DirectMap != later.DirectMap {
		problems = append(problems, fmt.Errorf("/proc/meminfo: was\n%s\nis\n%s", s.DirectMap, later.DirectMap))
	}
	return errors.Join(problems...)
}
