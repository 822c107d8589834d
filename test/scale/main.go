// SPDX-License-Identifier: Apache-2.0

// Command scale measures the controller with many nodes and LiveDumps: the real controller as a process and the chart as
// it is shipped, on a real API server, etcd, scheduler and DaemonSet controller. Nodes and pods are simulated by
// kwok; on each node the real agent runs against the API with the token of its pod, only that its dumps are made up.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

// options are the flags.
type options struct {
	nodes, livedumps int
	maxConcurrent    int
	dumpFor          time.Duration
	within           time.Duration
	controller       string
	out              string
	logs             string
}

// report is what out/bench-scale.json has.
type report struct {
	Nodes     int `json:"nodes"`
	LiveDumps int `json:"livedumps"`
	// ControllerRSSMiB is the most that was resident at any time, as the kernel counted it.
	ControllerRSSMiB     float64 `json:"controller_rss_mib"`
	RequestsPerLiveDump  float64 `json:"requests_per_livedump"`
	ConvergeSeconds      float64 `json:"converge_s"`
	ControllerRSSEndMiB  float64 `json:"controller_rss_end_mib"`
	ControllerCPUSeconds float64 `json:"controller_cpu_s"`
	MaxConcurrent        int     `json:"max_concurrent"`
	DumpSeconds          float64 `json:"dump_s"`
	// Requests by who made them and what they were, for each LiveDump, as the API server's audit log counts them.
	ControllerRequests map[string]float64 `json:"controller_requests_per_livedump"`
	AgentRequests      map[string]float64 `json:"agent_requests_per_livedump"`
	Outcomes           map[string]int     `json:"outcomes"`
}

func main() {
	var o options
	flag.IntVar(&o.nodes, "nodes", 1000, "how many nodes")
	flag.IntVar(&o.livedumps, "livedumps", 5000, "how many LiveDumps, over all nodes in turn")
	flag.IntVar(&o.maxConcurrent, "max-concurrent", 0, "the controller's --max-concurrent-dumps")
	flag.DurationVar(&o.dumpFor, "dump-for", 3*time.Second, "how long a made-up dump takes")
	flag.DurationVar(&o.within, "within", time.Hour, "fail if it takes longer")
	flag.StringVar(&o.controller, "controller", "bin/livedump-controller", "the controller's `binary`")
	flag.StringVar(&o.out, "out", "out/bench-scale.json", "`file` for the result")
	flag.StringVar(&o.logs, "logs", "out/bench-scale", "`directory` for logs")
	flag.Parse()
	ctrl.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.nodes < 1 || o.livedumps < o.nodes {
		return errors.New("there must be a LiveDump for each node")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.within, fmt.Errorf("not within %s", o.within))
	defer cancel()
	if err := errors.Join(os.RemoveAll(o.logs), os.MkdirAll(o.logs, 0o755), os.MkdirAll(filepath.Dir(o.out), 0o755)); err != nil {
		return err
	}
	c, ctx, err := startCluster(ctx, o)
	if c != nil {
		defer func() { err = errors.Join(err, c.stop()) }()
	}
	if err != nil {
		return err
	}
	fleet := newFleet(c, o.dumpFor)
	defer fleet.stop()
	if err := c.populate(ctx, o); err != nil {
		return err
	}
	if err := fleet.start(ctx); err != nil {
		return err
	}
	say("%d nodes, %d claims: creating %d LiveDumps", o.nodes, o.livedumps, o.livedumps)
	c.audit.reset()
	began := time.Now()
	if err := c.createDumps(ctx, o); err != nil {
		return err
	}
	outcomes, err := c.awaitConverged(ctx, o.livedumps)
	if err != nil {
		return fmt.Errorf("%w%s", err, fleet.complaints())
	}
	r := report{Nodes: o.nodes, LiveDumps: o.livedumps, ConvergeSeconds: time.Since(began).Seconds(), MaxConcurrent: o.maxConcurrent,
		DumpSeconds: o.dumpFor.Seconds(), Outcomes: outcomes}
	if err := r.measure(c, o); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.out, append(text, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Println(string(text))
	if outcomes["Complete"] != o.livedumps {
		return fmt.Errorf("only %d of %d LiveDumps are complete%s", outcomes["Complete"], o.livedumps, fleet.complaints())
	}
	return nil
}

// measure reads what the run has cost.
func (r *report) measure(c *scaleCluster, o options) error {
	var err error
	if r.ControllerRSSMiB, r.ControllerRSSEndMiB, r.ControllerCPUSeconds, err = c.controllerUse(); err != nil {
		return err
	}
	var total float64
	r.ControllerRequests, r.AgentRequests = map[string]float64{}, map[string]float64{}
	for key, n := range c.audit.counts() {
		each := float64(n) / float64(o.livedumps)
		total += each
		if key.user == controllerAccount {
			r.ControllerRequests[key.what] += each
		} else {
			r.AgentRequests[key.what] += each
		}
	}
	r.RequestsPerLiveDump = total
	if total == 0 {
		return errors.New("the audit log counted no requests: nothing was measured")
	}
	return nil
}

func say(format string, args ...any) {
	fmt.Printf("%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
