// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	metricName = regexp.MustCompile(`livedump_[a-z_]+`)
	fqName     = regexp.MustCompile(`fqName: "([^"]+)"`)
)

// exported are the names of all metrics of livedump.
func exported() map[string]bool {
	names := map[string]bool{}
	for _, c := range append([]prometheus.Collector{Inventory{}}, counts...) {
		described := make(chan *prometheus.Desc, 8)
		c.Describe(described)
		close(described)
		for d := range described {
			names[fqName.FindStringSubmatch(d.String())[1]] = true
		}
	}
	return names
}

// base takes what Prometheus adds to the name of a histogram off again.
func base(name string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return name
}

func chartFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "charts", "livedump", "files", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A renamed metric leaves an alert that never fires and a panel that stays empty.
func TestAlertsAndDashboardUseMetricsThatExist(t *testing.T) {
	names := exported()
	if len(names) < 10 {
		t.Fatalf("only %d metrics found: %v", len(names), names)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(chartFile(t, "dashboard.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, panel := range dashboard.Panels {
		if len(panel.Targets) == 0 {
			t.Errorf("panel %q shows nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			used := metricName.FindAllString(target.Expr, -1)
			if len(used) == 0 {
				t.Errorf("panel %q: no metric in %q", panel.Title, target.Expr)
			}
			for _, name := range used {
				shown[base(name)] = true
				if !names[base(name)] {
					t.Errorf("panel %q: there is no metric %s", panel.Title, name)
				}
			}
		}
	}
	for name := range names {
		if !shown[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
	var rules int
	for line := range strings.Lines(string(chartFile(t, "rules.yaml"))) {
		expr, found := strings.CutPrefix(strings.TrimSpace(line), "expr:")
		if !found {
			continue
		}
		rules++
		used := metricName.FindAllString(expr, -1)
		if len(used) == 0 {
			t.Errorf("no metric in %q", expr)
		}
		for _, name := range used {
			if !names[base(name)] {
				t.Errorf("rule %q: there is no metric %s", expr, name)
			}
		}
	}
	if rules == 0 {
		t.Error("no rule found")
	}
}
