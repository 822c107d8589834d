// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"livedump.io/api/v1alpha1"
)

// endedTotal counts LiveDumps that ended. Its label takes three values only: reasons come
// from the agents, and a node that was taken over could make up new ones without end.
var endedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "livedump_ended_total",
	Help: "LiveDumps that ended, by outcome (succeeded, failed, canceled).",
}, []string{"outcome"})

func init() {
	metrics.Registry.MustRegister(endedTotal)
}

// recordEnd counts one LiveDump by its condition Succeeded.
func recordEnd(succeeded *metav1.Condition) {
	outcome := "failed"
	switch {
	case succeeded.Status == metav1.ConditionTrue:
		outcome = "succeeded"
	case succeeded.Reason == v1alpha1.ReasonCanceled:
		outcome = "canceled"
	}
	endedTotal.WithLabelValues(outcome).Inc()
}
