// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"
)

// A row of sessions with a leak, or that becomes slow, must be found; noise must not.
func TestJudgeRow(t *testing.T) {
	const sessions = 100
	row := func(perSession map[string]int64, slowdown time.Duration) error {
		values := map[string][]int64{}
		var took []time.Duration
		for n := range int64(sessions) {
			noise := n * 7919 % 200 // KiB
			for _, g := range growth {
				v := g.sign * max(0, settling-n) * 500 // caches that are filled once
				v = int64(100_000) - v + perSession[g.name]*n
				if g.name == "MemAvailable" || g.name == "Slab" {
					v += noise
				}
				values[g.name] = append(values[g.name], v)
			}
			took = append(took, time.Second+time.Duration(noise)*time.Millisecond+time.Duration(n)*slowdown)
		}
		_, err := judgeRow(values, took)
		return err
	}
	if err := row(nil, 0); err != nil {
		t.Errorf("noise alone: %v", err)
	}
	for name, err := range map[string]error{
		"memory":   row(map[string]int64{"MemAvailable": -30}, 0),
		"slab":     row(map[string]int64{"Slab": 16}, 0),
		"vmalloc":  row(map[string]int64{"VmallocUsed": 4}, 0),
		"per-CPU":  row(map[string]int64{"Percpu": 1}, 0),
		"slowness": row(nil, 20*time.Millisecond),
	} {
		if err == nil {
			t.Errorf("growth of %s was not found", name)
		}
	}
}
