// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The plot: memory on the x axis, the stop on the y axis, both logarithmic.
const (
	plotWidth, plotHeight = 760, 460
	plotLeft, plotRight   = 70, 250
	plotTop, plotBottom   = 40, 60
)

// A Okabe-Ito palette: it can be told apart by everybody.
var plotColours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999"}

type series struct {
	name  string
	eager bool
	runs  []Run
}

// plot draws the runs without many tasks as SVG.
func plot(r Results) []byte {
	all := map[string]*series{}
	var names []string
	lowest, highest := math.Inf(1), 0.0
	var sizes []int
	for _, run := range r.Runs {
		if run.Tasks > 0 {
			continue
		}
		name := run.Method + ", " + run.condition()
		if all[name] == nil {
			all[name] = &series{name: name, eager: run.Method == "eager"}
			names = append(names, name)
		}
		all[name].runs = append(all[name].runs, run)
		lowest, highest = math.Min(lowest, milliseconds(run.StopNS)), math.Max(highest, milliseconds(run.StopNS))
		if !slices.Contains(sizes, run.RAMMiB) {
			sizes = append(sizes, run.RAMMiB)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		plotWidth, plotHeight, plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", plotWidth, plotHeight)
	if len(names) == 0 {
		b.WriteString("</svg>\n")
		return []byte(b.String())
	}
	slices.Sort(sizes)
	bottom, top := math.Floor(math.Log10(lowest)), math.Ceil(math.Log10(highest))
	if top == bottom {
		top++
	}
	x := func(mib int) float64 {
		low, high := math.Log2(float64(sizes[0])), math.Log2(float64(sizes[len(sizes)-1]))
		return plotLeft + (math.Log2(float64(mib))-low)/math.Max(high-low, 1)*(plotWidth-plotLeft-plotRight)
	}
	y := func(ms float64) float64 {
		return plotHeight - plotBottom - (math.Log10(ms)-bottom)/(top-bottom)*(plotHeight-plotTop-plotBottom)
	}
	text := func(x, y float64, anchor, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(s))
	}
	line := func(x1, y1, x2, y2 float64, colour string) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, colour)
	}
	for e := bottom; e <= top; e++ {
		ms := math.Pow(10, e)
		line(plotLeft, y(ms), plotWidth-plotRight, y(ms), "#dddddd")
		text(plotLeft-8, y(ms)+4, "end", fmt.Sprintf("%g ms", ms))
	}
	for _, mib := range sizes {
		line(x(mib), plotTop, x(mib), plotHeight-plotBottom, "#dddddd")
		text(x(mib), plotHeight-plotBottom+18, "middle", fmt.Sprintf("%d GiB", mib>>10))
	}
	text(plotLeft, 22, "start", "All CPUs held, by memory (medians)")
	text(plotLeft, plotHeight-14, "start", r.Machine)
	for i, name := range names {
		s := all[name]
		slices.SortFunc(s.runs, func(a, b Run) int { return a.RAMMiB - b.RAMMiB })
		colour := plotColours[i%len(plotColours)]
		dash := ""
		if s.eager {
			dash = ` stroke-dasharray="6 4"`
		}
		var points []string
		for _, run := range s.runs {
			px, py := x(run.RAMMiB), y(milliseconds(run.StopNS))
			points = append(points, fmt.Sprintf("%.1f,%.1f", px, py))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", px, py, colour)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n",
			strings.Join(points, " "), colour, dash)
		ly := float64(plotTop + 10 + 20*i)
		lx := float64(plotWidth - plotRight + 20)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="2"%s/>`+"\n",
			lx, ly-4, lx+28, ly-4, colour, dash)
		text(lx+36, ly, "start", name)
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}
