// SPDX-License-Identifier: Apache-2.0

package endtoend

import "testing"

func TestParseWorkload(t *testing.T) {
	counts, err := parseWorkload("workload: ok cache=1 slab=2 parked=9\nworkload: ok cache=3 slab=4 parked=9\n")
	if err != nil || counts["cache"] != 3 || counts["slab"] != 4 {
		t.Errorf("counts %v, error %v; want those of the last line", counts, err)
	}
	for name, log := range map[string]string{
		"nothing yet":    "",
		"a failed check": "workload: ok cache=1\nworkload: FAILED cache: round 1: damage\n",
		"half a line":    "workload: ok cache=",
	} {
		if counts, err := parseWorkload(log); err == nil {
			t.Errorf("%s: no error, counts %v", name, counts)
		}
	}
}
