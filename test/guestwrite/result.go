// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
)

func medians(all []measurement) kind {
	of := func(f func(measurement) float64) float64 {
		var v []float64
		for _, m := range all {
			v = append(v, f(m))
		}
		slices.Sort(v)
		if n := len(v); n%2 == 0 {
			return (v[n/2-1] + v[n/2]) / 2
		}
		return v[len(v)/2]
	}
	k := kind{
		Compression: all[0].Compression, DumpLevel: all[0].DumpLevel, Load: all[0].Load,
		MiB:       of(func(m measurement) float64 { return float64(m.Bytes) / (1 << 20) }),
		Seconds:   of(func(m measurement) float64 { return m.Seconds }),
		Write:     of(func(m measurement) float64 { return m.Write }),
		DD:        of(func(m measurement) float64 { return m.DD }),
		HighWater: of(func(m measurement) float64 { return float64(m.HighWater) }),
	}
	// dd wrote the bytes of its own dump.
	k.Whole = of(func(m measurement) float64 { return m.DD / m.Seconds })
	k.Writing = of(func(m measurement) float64 { return m.DD / m.Write })
	return k
}

func (r *result) print() {
	for _, k := range r.Kinds {
		fmt.Printf("%s, dump level %d, %s: %.0f MiB in %.1f s (%.1f s of it in Writing); the reserve held %.0f pages at most\n", k.Compression,
			k.DumpLevel, map[bool]string{true: "idle", false: "load " + k.Load}[k.Load == ""], k.MiB, k.Seconds, k.Write, k.HighWater)
		if k.DD > 0 {
			fmt.Printf("  dd oflag=direct of the same bytes: %.2f s; the whole dump has %.2f of its throughput, Writing %.2f\n", k.DD, k.Whole, k.Writing)
		}
	}
}
