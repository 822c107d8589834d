// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"livedump.io/api/v1alpha1"
)

// Inventory is a collector that counts the LiveDumps that there are at the time of a scrape.
type Inventory struct {
	// Reader is a cache; it is read at every scrape.
	Reader client.Reader
}

// inventoryTimeout of one count.
const inventoryTimeout = 5 * time.Second

var livedumps = prometheus.NewDesc("livedump_livedumps",
	"LiveDumps that exist, by state: Pending (waiting for a turn, a target or an agent), Running, Succeeded, Failed.",
	[]string{"state"}, nil)

// Describe implements prometheus.Collector.
func (Inventory) Describe(c chan<- *prometheus.Desc) { c <- livedumps }

// Collect implements prometheus.Collector.
func (i Inventory) Collect(c chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), inventoryTimeout)
	defer cancel()
	list := &v1alpha1.LiveDumpList{}
	if err := i.Reader.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		// A number that was not counted is not shown.
		log.Log.Error(err, "LiveDumps cannot be counted for the metrics")
		return
	}
	count := map[string]int{"Pending": 0, "Running": 0, "Succeeded": 0, "Failed": 0}
	for n := range list.Items {
		count[stateOf(&list.Items[n])]++
	}
	for state, n := range count {
		c <- prometheus.MustNewConstMetric(livedumps, prometheus.GaugeValue, float64(n), state)
	}
}

func stateOf(dump *v1alpha1.LiveDump) string {
	succeeded := condition(dump, v1alpha1.ConditionSucceeded)
	switch {
	case dump.Ended() && succeeded.Reason == v1alpha1.ReasonComplete:
		return "Succeeded"
	case dump.Ended():
		return "Failed"
	case dump.Begun():
		return "Running"
	}
	return "Pending"
}
