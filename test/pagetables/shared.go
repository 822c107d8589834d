// SPDX-License-Identifier: Apache-2.0

package pagetables

import (
	"fmt"

	"livedump.io/test/guest"
)

// CompareShared compares what two dumps both have of a region whose mappings come
// and go: every address that leads to the same frame in both must do so with the same
// effective permissions and bits. It returns how many pages those are.
func CompareShared(before, after guest.PageTables, region guest.Region) (pages int, err error) {
	old, now := leaves(before[region]), leaves(after[region])
	x, y := walk{list: old}, walk{list: now}
	for !x.ended() && !y.ended() {
		was, is := x.here(), y.here()
		switch {
		case was.va < is.va:
			x.step(min(was.pages, (is.va-was.va)>>pageShift))
			continue
		case is.va < was.va:
			y.step(min(is.pages, (was.va-is.va)>>pageShift))
			continue
		}
		n := min(was.pages, is.pages)
		if was.pfn == is.pfn {
			if was.flags != is.flags {
				return pages, fmt.Errorf("region %s: was %s; is %s", region, was.entry, is.entry)
			}
			pages += int(n)
		}
		x.step(n)
		y.step(n)
	}
	return pages, nil
}
