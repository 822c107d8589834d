// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/format"
	nodeagent "livedump.io/node-agent/agent"
	"livedump.io/node-agent/engine"
)

// fleet runs the agent of every node whose pod the DaemonSet controller made and kwok runs. The agents are the real
// ones, each with the token of its pod; only the dumps are made up.
type fleet struct {
	cluster *scaleCluster
	dumpFor time.Duration

	mu       sync.Mutex
	agents   map[types.UID]context.CancelFunc
	trouble  []string
	stopping bool
	running  sync.WaitGroup
	cancel   context.CancelFunc
}

func newFleet(c *scaleCluster, dumpFor time.Duration) *fleet {
	return &fleet{cluster: c, dumpFor: dumpFor, agents: map[types.UID]context.CancelFunc{}}
}

// start watches the agents' pods, as the kubelets would.
func (f *fleet) start(ctx context.Context) error {
	ctx, f.cancel = context.WithCancel(ctx)
	pods, err := cache.New(f.cluster.config, cache.Options{Scheme: f.cluster.scheme, DefaultNamespaces: map[string]cache.Config{releaseNamespace: {}}})
	if err != nil {
		return err
	}
	informer, err := pods.GetInformer(ctx, &corev1.Pod{})
	if err != nil {
		return err
	}
	seen := func(object any) {
		pod, ok := object.(*corev1.Pod)
		if ok && pod.Spec.ServiceAccountName == agentAccount && pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
			f.begin(ctx, pod)
		}
	}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    seen,
		UpdateFunc: func(_, is any) { seen(is) },
		DeleteFunc: func(object any) {
			if gone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
				object = gone.Obj
			}
			if pod, ok := object.(*corev1.Pod); ok {
				f.end(pod.UID)
			}
		},
	}); err != nil {
		return err
	}
	f.running.Go(func() { f.complain(pods.Start(ctx)) })
	if !pods.WaitForCacheSync(ctx) {
		return errors.New("the agents' pods are not known")
	}
	return nil
}

func (f *fleet) begin(ctx context.Context, pod *corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.agents[pod.UID] != nil || f.stopping {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	f.agents[pod.UID] = cancel
	f.running.Go(func() {
		if err := f.runAgent(ctx, pod); err != nil && ctx.Err() == nil {
			f.complain(fmt.Errorf("agent of %s: %w", pod.Spec.NodeName, err))
		}
	})
}

func (f *fleet) end(pod types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if cancel := f.agents[pod]; cancel != nil {
		cancel()
		delete(f.agents, pod)
	}
}

func (f *fleet) stop() {
	f.mu.Lock()
	f.stopping = true
	f.mu.Unlock()
	if f.cancel != nil {
		f.cancel()
	}
	f.running.Wait()
}

// runAgent is what livedump-agent does, without a kernel module and a device.
func (f *fleet) runAgent(ctx context.Context, pod *corev1.Pod) error {
	token, err := f.cluster.token(ctx, agentAccount, pod)
	if err != nil {
		return err
	}
	config := rest.AnonymousClientConfig(f.cluster.config)
	config.BearerToken, config.QPS = token, -1
	node := pod.Spec.NodeName
	manager, err := ctrl.NewManager(config, ctrl.Options{Scheme: f.cluster.scheme, Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		// Many agents in one process, so names of controllers are not unique.
		Controller: ctrlconfig.Controller{SkipNameValidation: ptr.To(true)},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{&v1alpha1.LiveDump{}: {
			Field: fields.OneTermEqualSelector("spec.nodeName", node)}}}})
	if err != nil {
		return err
	}
	agent := &nodeagent.Agent{
		Reader: manager.GetClient(), Status: nodeagent.APIStatus{Client: manager.GetClient()},
		NodeName: node, BootID: bootID(node), Dump: f.dump,
		Unload: func() error { return nil }, SessionAlive: func() (bool, error) { return false, nil },
		Session: func() (string, bool, error) { return "", false, nil },
		Abandon: func(context.Context, string) (bool, error) { return false, nil },
		Clock:   clock.RealClock{}, Log: slog.New(slog.DiscardHandler),
	}
	if err := agent.SetupWithManager(manager); err != nil {
		return err
	}
	return manager.Start(ctx)
}

// dump is made up: it takes its time, tells its progress as often as the real engine, and reports.
func (f *fleet) dump(ctx context.Context, _ *v1alpha1.LiveDump, o engine.Options) (*engine.Report, error) {
	const pages, slice = 1 << 20, 100 * time.Millisecond
	report := &engine.Report{Format: format.Kdump.String(), Device: "made up", Session: o.UUID.String(), StartedAt: time.Now()}
	for done := time.Duration(0); done < f.dumpFor; done += slice {
		o.Progress(engine.Progress{Step: engine.StepWrite, ModuleLoaded: true, PagesTotal: pages, PagesDone: uint64(pages * done / f.dumpFor)})
		select {
		case <-ctx.Done():
			return report, context.Cause(ctx)
		case <-time.After(slice):
		}
	}
	report.Module.How, report.Module.Version = "loaded", "made up"
	report.PagesToDump, report.PagesDumped, report.SizeBytes, report.SHA256 = pages, pages, 1<<30, strings.Repeat("0", 64)
	return report, nil
}

func (f *fleet) complain(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trouble = append(f.trouble, err.Error())
}

// complaints are some of the errors of agents, for an error message.
func (f *fleet) complaints() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.trouble) == 0 {
		return ""
	}
	return fmt.Sprintf("; %d agents had trouble, the first: %s", len(f.trouble), f.trouble[0])
}
