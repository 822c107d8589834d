// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"livedump.io/api/v1alpha1"
)

// All metrics of LiveDumps are the controller's: it sees every end exactly once, and the agent,
// which is in its node's network, opens no port for them. No label has values that an agent could
// make up without end: reasons are checked here, steps and classes by the API server.
var (
	endedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "livedump_ended_total",
		Help: "LiveDumps that ended, by outcome (succeeded, failed, canceled) and reason of the condition Succeeded.",
	}, []string{"outcome", "reason"})
	durationSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "livedump_duration_seconds",
		Help:    "Time from the acceptance of a LiveDump to its end, by outcome.",
		Buckets: prometheus.ExponentialBuckets(1, 2, 16), // to nine hours
	}, []string{"outcome"})
	stepSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "livedump_step_duration_seconds",
		Help:    "Time that the agent took for a step of a dump that succeeded, by step.",
		Buckets: prometheus.ExponentialBuckets(0.01, 4, 12), // to half a day
	}, []string{"step"})
	freezeSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "livedump_freeze_seconds",
		Help:    "Longest time that any CPU was held in the stop of a dump that succeeded.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14), // to 0.8 s
	})
	bytesTotal = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "livedump_bytes_total",
		Help: "Bytes of all dumps that succeeded, as they lie on their targets.",
	})
	pagesTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "livedump_pages_total",
		Help: "Pages of RAM of the nodes of all dumps that succeeded, by class as of the stop and by disposition (Dumped, Excluded).",
	}, []string{"class", "disposition"})
	pagesLostTotal = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "livedump_pages_lost_total",
		Help: "Pages that could not be kept and are left out of dumps that succeeded.",
	})
	pagesUncoveredTotal = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "livedump_pages_uncovered_total",
		Help: "Pages in dumps that succeeded that may not be of the one instant.",
	})
	faultsTotal = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "livedump_faults_total",
		Help: "Faults that nodes took on frozen memory in dumps that succeeded.",
	})
	reserveUsedRatio = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "livedump_reserve_used_ratio",
		Help:    "Largest share of the reserve that was in use at any time of a dump that succeeded.",
		Buckets: prometheus.LinearBuckets(0.1, 0.1, 10),
	})
)

var counts = []prometheus.Collector{endedTotal, durationSeconds, stepSeconds, freezeSeconds, bytesTotal, pagesTotal,
	pagesLostTotal, pagesUncoveredTotal, faultsTotal, reserveUsedRatio}

func init() {
	metrics.Registry.MustRegister(counts...)
}

// recordEnd counts one LiveDump whose status is final.
func recordEnd(succeeded *metav1.Condition, status *v1alpha1.LiveDumpStatus) {
	outcome := "failed"
	switch {
	case succeeded.Status == metav1.ConditionTrue:
		outcome = "succeeded"
	case succeeded.Reason == v1alpha1.ReasonCanceled:
		outcome = "canceled"
	}
	endedTotal.WithLabelValues(outcome, knownReason(succeeded.Reason)).Inc()
	if status.StartTime != nil && status.CompletionTime != nil {
		durationSeconds.WithLabelValues(outcome).Observe(status.CompletionTime.Sub(status.StartTime.Time).Seconds())
	}
	if r := status.Result; r != nil && outcome == "succeeded" {
		recordResult(r)
	}
}

// knownReason is the reason, or Other for one that this version does not know.
func knownReason(reason string) string {
	if reason == v1alpha1.ReasonComplete || slices.Contains(v1alpha1.FailureReasons, reason) {
		return reason
	}
	return "Other"
}

func recordResult(r *v1alpha1.Result) {
	for _, step := range r.Steps {
		stepSeconds.WithLabelValues(string(step.Name)).Observe(float64(max(step.Milliseconds, 0)) / 1e3)
	}
	freezeSeconds.Observe(float64(max(r.FreezeMicroseconds, 0)) / 1e6)
	for _, c := range r.PagesByClass {
		add(pagesTotal.WithLabelValues(c.Class, c.Disposition), c.Pages)
	}
	add(bytesTotal, r.SizeBytes)
	add(pagesLostTotal, r.PagesLost)
	add(pagesUncoveredTotal, r.PagesUncovered)
	add(faultsTotal, r.Faults)
	if r.Reserve != nil && r.Reserve.Pages > 0 {
		reserveUsedRatio.Observe(float64(r.Reserve.UsedPages) / float64(r.Reserve.Pages))
	}
}

// add counts what an agent reported. A counter panics at a negative number, and an agent could send one.
func add(c prometheus.Counter, n int64) {
	c.Add(float64(max(n, 0)))
}
