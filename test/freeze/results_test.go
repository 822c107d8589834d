// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"livedump.io/internal/session"
)

func level(ramMiB int, stop time.Duration) Run {
	return Run{RAMMiB: ramMiB, CPUs: 2}.median("level", []session.Stats{{Stop: stop}})
}

func eager(ramMiB int, stop time.Duration) Run {
	return Run{RAMMiB: ramMiB, CPUs: 2}.median("eager", []session.Stats{{Stop: stop}})
}

func TestMedianIsOneOfTheFreezes(t *testing.T) {
	r := Run{}.median("level", []session.Stats{
		{Stop: 9, Rendezvous: 1}, {Stop: 2, Rendezvous: 2}, {Stop: 5, Rendezvous: 3},
	})
	if r.StopNS != 5 || r.RendezvousNS != 3 || r.MinNS != 2 || r.MaxNS != 9 || r.Freezes != 3 {
		t.Errorf("median: %+v", r)
	}
}

func TestCheck(t *testing.T) {
	ms := time.Millisecond
	good := []Run{level(2<<10, 2*ms), level(8<<10, 2*ms), level(16<<10, 3*ms), eager(8<<10, 100*ms)}
	for _, c := range []struct {
		name string
		runs []Run
		want string
	}{
		{"good", good, ""},
		{"ratio", append([]Run{eager(8<<10, 99*ms)}, good[:3]...), "of the eager stop"},
		{"growth", append([]Run{level(16<<10, 4*ms)}, good[:2]...), "grows"},
		{"nothing", nil, "nothing to compare"},
	} {
		err := Results{Runs: c.runs}.check()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

func TestPlotIsXML(t *testing.T) {
	svg := plot(Results{Machine: "a < b", Runs: []Run{level(2<<10, time.Millisecond), eager(8<<10, time.Second)}})
	d := xml.NewDecoder(strings.NewReader(string(svg)))
	lines := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 2 {
		t.Errorf("%d lines, want 2", lines)
	}
}
