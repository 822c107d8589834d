// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"livedump.io/api/v1alpha1"
)

const runbooks = "https://runbooks.example/livedump"

func monitored(t *testing.T) rendered {
	return mustTemplate(t, "--set=monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true,monitoring.dashboard.enabled=true",
		"--set=monitoring.runbookURL="+runbooks, "--set=monitoring.labels.release=prometheus")
}

// A cluster without the Prometheus operator does not know these kinds.
func TestMonitoringIsOptIn(t *testing.T) {
	for key := range mustTemplate(t) {
		if strings.HasPrefix(key, "ServiceMonitor/") || strings.HasPrefix(key, "PrometheusRule/") || strings.HasSuffix(key, "-dashboard") {
			t.Errorf("%s is rendered by default", key)
		}
	}
	objects := monitored(t)
	for _, key := range []string{"ServiceMonitor/livedump", "PrometheusRule/livedump"} {
		if objects[key] == nil {
			t.Fatalf("%s is not rendered", key)
		}
		if objects[key].GetLabels()["release"] != "prometheus" {
			t.Errorf("%s: labels %v", key, objects[key].GetLabels())
		}
	}
	dashboard := as[corev1.ConfigMap](t, objects, "ConfigMap/livedump-dashboard")
	if dashboard.Labels["grafana_dashboard"] != "1" || !json.Valid([]byte(dashboard.Data["livedump.json"])) {
		t.Errorf("labels %v, or no JSON in it", dashboard.Labels)
	}
}

// An alert at night whose link leads nowhere is worse than none.
func TestEveryAlertHasItsRunbook(t *testing.T) {
	groups, _, err := unstructured.NestedSlice(monitored(t)["PrometheusRule/livedump"].Object, "spec", "groups")
	if err != nil || len(groups) != 1 {
		t.Fatalf("groups: %v, %v", groups, err)
	}
	rules := groups[0].(map[string]any)["rules"].([]any)
	if len(rules) < 5 {
		t.Errorf("only %d rules", len(rules))
	}
	for _, r := range rules {
		rule := r.(map[string]any)
		annotations := rule["annotations"].(map[string]any)
		url, _ := annotations["runbook_url"].(string)
		path, found := strings.CutPrefix(url, runbooks+"/")
		if !found || annotations["summary"] == nil || annotations["description"] == nil {
			t.Errorf("%s: annotations %v", rule["alert"], annotations)
			continue
		}
		for _, reason := range v1alpha1.FailureReasons {
			page := filepath.Join("..", "..", "docs", "runbooks", strings.ReplaceAll(path, "{{ $labels.reason }}", reason))
			if _, err := os.Stat(page); err != nil {
				t.Errorf("%s links %s: %v", rule["alert"], url, err)
			}
		}
	}
}
