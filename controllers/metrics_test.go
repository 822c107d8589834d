// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"livedump.io/api/v1alpha1"
)

// counted runs f and returns by how much the counter grew.
func counted(c prometheus.Counter, f func()) float64 {
	before := testutil.ToFloat64(c)
	f()
	return testutil.ToFloat64(c) - before
}

func finished(result *v1alpha1.Result) *v1alpha1.LiveDumpStatus {
	start := metav1.NewTime(time.Unix(1000, 0))
	end := metav1.NewTime(time.Unix(1060, 0))
	return &v1alpha1.LiveDumpStatus{StartTime: &start, CompletionTime: &end, Result: result}
}

func TestASuccessIsCountedWithItsResult(t *testing.T) {
	status := finished(&v1alpha1.Result{
		SizeBytes: 5000, FreezeMicroseconds: 1500, PagesLost: 2, PagesUncovered: 3, Faults: 70,
		Reserve:      &v1alpha1.ReserveUse{Pages: 100, UsedPages: 25},
		Steps:        []v1alpha1.StepDuration{{Name: v1alpha1.StepFreeze, Milliseconds: 20}},
		PagesByClass: []v1alpha1.PageClassCount{{Class: "Kernel", Pages: 11, Disposition: "Dumped"}},
	})
	succeeded := &metav1.Condition{Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonComplete}
	for name, c := range map[string]struct {
		counter prometheus.Counter
		want    float64
	}{
		"ended":     {endedTotal.WithLabelValues("succeeded", "Complete"), 1},
		"bytes":     {bytesTotal, 5000},
		"lost":      {pagesLostTotal, 2},
		"uncovered": {pagesUncoveredTotal, 3},
		"faults":    {faultsTotal, 70},
		"pages":     {pagesTotal.WithLabelValues("Kernel", "Dumped"), 11},
	} {
		if got := counted(c.counter, func() { recordEnd(succeeded, status) }); got != c.want {
			t.Errorf("%s: grew by %v, want %v", name, got, c.want)
		}
	}
	if n := testutil.CollectAndCount(stepSeconds); n != 1 {
		t.Errorf("%d step histograms, want that of one step", n)
	}
}

// What an agent reports must not be able to stop the controller, or to fill its memory with labels.
func TestAnAgentCannotBreakTheMetrics(t *testing.T) {
	status := finished(&v1alpha1.Result{SizeBytes: -1, PagesLost: -5, Faults: -1, FreezeMicroseconds: -7,
		Reserve:      &v1alpha1.ReserveUse{},
		PagesByClass: []v1alpha1.PageClassCount{{Class: "Kernel", Pages: -3, Disposition: "Dumped"}}})
	recordEnd(&metav1.Condition{Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonComplete}, status)

	made := &metav1.Condition{Status: metav1.ConditionFalse, Reason: "MadeUp1234"}
	if got := counted(endedTotal.WithLabelValues("failed", "Other"), func() { recordEnd(made, finished(nil)) }); got != 1 {
		t.Errorf("a reason that nobody knows is not counted as Other (%v)", got)
	}
	canceled := &metav1.Condition{Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonCanceled}
	if got := counted(endedTotal.WithLabelValues("canceled", "Canceled"), func() { recordEnd(canceled, finished(nil)) }); got != 1 {
		t.Errorf("a canceled LiveDump is not counted as such (%v)", got)
	}
}

func TestTheInventoryCountsByState(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	dump := func(name, session string, succeeded metav1.ConditionStatus, reason string) *v1alpha1.LiveDump {
		return &v1alpha1.LiveDump{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "n"}, Status: v1alpha1.LiveDumpStatus{
			Session:    session,
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionSucceeded, Status: succeeded, Reason: reason}}}}
	}
	reader := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		dump("a", "", metav1.ConditionUnknown, v1alpha1.ReasonPending),
		dump("b", "uuid", metav1.ConditionUnknown, v1alpha1.ReasonRunning),
		dump("c", "uuid", metav1.ConditionTrue, v1alpha1.ReasonComplete),
		dump("d", "uuid", metav1.ConditionFalse, v1alpha1.ReasonIOError),
		dump("e", "", metav1.ConditionFalse, v1alpha1.ReasonCanceled)).Build()
	registry := prometheus.NewRegistry()
	registry.MustRegister(Inventory{Reader: reader})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
	}
	for state, want := range map[string]float64{"Pending": 1, "Running": 1, "Succeeded": 1, "Failed": 2} {
		if got[state] != want {
			t.Errorf("%s: %v, want %v", state, got[state], want)
		}
	}
}
