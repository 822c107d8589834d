// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/module"
	"livedump.io/node-agent/agent"
	"livedump.io/node-agent/engine"
)

// reportTime is what is left of the grace period for marking the target and for the last report.
const reportTime = 10 * time.Second

// runFlags are the flags of "run".
type runFlags struct {
	nodeName      string
	namespaces    string
	kubeletDir    string
	hostRoot      string
	dirs          module.Dirs
	gracePeriod   time.Duration
	healthAddress string
	takeover      time.Duration
	calibrate     time.Duration
	dieAt         string
	log           *slog.Logger
}

func parseRun(args []string, out io.Writer) (*runFlags, error) {
	r := &runFlags{}
	flags := flag.NewFlagSet("livedump-agent run", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, "usage: livedump-agent [run] [flags]\n\n"+
			"Carries out the LiveDumps of this node. Runs as root in the node's PID namespace.\n\nFlags:\n")
		flags.PrintDefaults()
	}
	flags.StringVar(&r.nodeName, "node-name", os.Getenv("NODE_NAME"), "`name` of this node in the API (default: $NODE_NAME)")
	flags.StringVar(&r.namespaces, "namespaces", "", "comma-separated `namespaces` to watch (default: all)")
	flags.StringVar(&r.kubeletDir, "kubelet-dir", cmp.Or(os.Getenv("KUBELET_DIR"), "/var/lib/kubelet"), "the kubelet's root `directory` on the node (default: $KUBELET_DIR)")
	flags.StringVar(&r.hostRoot, "host-root", blockdev.ContainerHost.Root, "`directory` that is the root of the node's file system")
	flags.StringVar(&r.dirs.Image, "module-dir", module.DefaultDirs.Image, "`directory` with <release>/livedump.ko")
	flags.StringVar(&r.dirs.Host, "host-module-dir", module.DefaultDirs.Host, "`directory` with <release>/{extra,updates}/livedump.ko")
	flags.DurationVar(&r.gracePeriod, "grace-period", 60*time.Second, "`time` from SIGTERM to SIGKILL: a running dump goes on for all of it but the last "+reportTime.String()+", and is then left to the next agent")
	flags.DurationVar(&r.takeover, "takeover-grace", 3*time.Minute, "how long memory stays frozen when this agent ends in the middle of a dump, for the `time` until the next one goes on with it (at most 1h; 0: not at all)")
	flags.DurationVar(&r.calibrate, "calibrate", 0, "freeze memory for this `time` (at most 10s) before a dump, to see how large the reserve has to be; 0: take the module's default")
	flags.StringVar(&r.dieAt, "die-at", "", "for tests: `file` with the name of a point at which the agent kills itself")
	flags.StringVar(&r.healthAddress, "health-address", "", "`address` for /healthz and /readyz; use the loopback, for the agent is in the node's network (default: none)")
	logLevel := flags.String("log-level", "info", "debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, nil
		}
		return nil, usageError{err}
	}
	if flags.NArg() > 0 {
		return nil, usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	if r.nodeName == "" {
		return nil, usageError{errors.New("--node-name or $NODE_NAME is required")}
	}
	for _, ns := range r.namespaceList() {
		if problems := validation.IsDNS1123Label(ns); len(problems) > 0 {
			return nil, usageError{fmt.Errorf("--namespaces: %q: %s", ns, strings.Join(problems, "; "))}
		}
	}
	if r.takeover < 0 || r.takeover > time.Hour || r.calibrate < 0 || r.calibrate > 10*time.Second {
		return nil, usageError{errors.New("--takeover-grace must be at most 1h, --calibrate at most 10s, and neither negative")}
	}
	if r.gracePeriod < 0 {
		return nil, usageError{errors.New("--grace-period must not be negative")}
	}
	var err error
	if r.log, err = newLogger(*logLevel); err != nil {
		return nil, usageError{err}
	}
	return r, nil
}

func (r *runFlags) namespaceList() []string {
	if r.namespaces == "" {
		return nil
	}
	return strings.Split(r.namespaces, ",")
}

// run is "livedump-agent run".
func run(args []string, out io.Writer) error {
	r, err := parseRun(args, out)
	if err != nil || r == nil {
		return err
	}
	ctrl.SetLogger(logr.FromSlogHandler(r.log.Handler()))
	refuseHugePages(r.log)
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("how to reach the API server: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return fmt.Errorf("scheme: %w", err)
	}
	options := ctrl.Options{
		Scheme: scheme,
		// The agent sees no other node's LiveDumps.
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{&v1alpha1.LiveDump{}: {
			Field: fields.OneTermEqualSelector("spec.nodeName", r.nodeName)}}},
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: cmp.Or(r.healthAddress, "0"),
		LeaderElection:         false,
	}
	if namespaces := r.namespaceList(); len(namespaces) > 0 {
		options.Cache.DefaultNamespaces = map[string]cache.Config{}
		for _, ns := range namespaces {
			options.Cache.DefaultNamespaces[ns] = cache.Config{}
		}
	}
	manager, err := ctrl.NewManager(config, options)
	if err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	a, err := r.agent(manager.GetClient())
	if err != nil {
		return err
	}
	if err := a.SetupWithManager(manager); err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	ready := func(_ *http.Request) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if !manager.GetCache().WaitForCacheSync(ctx) {
			return errors.New("the LiveDumps of this node are not known yet")
		}
		return nil
	}
	if err := errors.Join(manager.AddHealthzCheck("ping", healthz.Ping), manager.AddReadyzCheck("cache", ready)); err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	return r.serve(manager, a)
}

// serve runs until a signal. A dump that is running then goes on for as long as the grace period allows, so the manager
// (which hears of a cancellation) ends only after it.
func (r *runFlags) serve(manager ctrl.Manager, a *agent.Agent) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)
	go func() {
		defer cancel()
		select {
		case s := <-signals:
			r.log.Info("stopping", "signal", s.String(), "gracePeriod", r.gracePeriod.String())
		case <-ctx.Done():
			return
		}
		giveUp := make(chan struct{})
		go func() {
			select {
			case <-time.After(max(0, r.gracePeriod-reportTime)):
			case <-signals: // a second one: at once
			}
			close(giveUp)
		}()
		a.Drain(giveUp)
	}()
	r.log.Info("livedump agent", "version", version, "node", r.nodeName, "bootID", a.BootID)
	if err := manager.Start(ctx); err != nil {
		return fmt.Errorf("running: %w", err)
	}
	return nil
}

// agent wires the machine to the agent.
func (r *runFlags) agent(c client.Client) (*agent.Agent, error) {
	host := blockdev.Host{Root: r.hostRoot, Proc: blockdev.ContainerHost.Proc, Sys: blockdev.ContainerHost.Sys}
	kernel := module.Running{Sys: host.Sys, Root: host.Root}
	node := engine.Node{Host: host, Loader: module.Loader{Kernel: kernel, Dirs: r.dirs}, Log: r.log}
	bootID, err := os.ReadFile(filepath.Join(host.Proc, "sys/kernel/random/boot_id"))
	if err != nil {
		return nil, fmt.Errorf("ID of this boot: %w", err)
	}
	var onPoint func(context.Context, engine.Step)
	if r.dieAt != "" {
		onPoint = agent.DieAt(r.dieAt)
	}
	return &agent.Agent{
		Grace:     r.takeover,
		Calibrate: r.calibrate,
		OnPoint:   onPoint,
		Session:   node.Session,
		Abandon: func(ctx context.Context, id string) (bool, error) {
			parsed, err := uuid.Parse(id)
			if err != nil {
				return false, fmt.Errorf("session %q: %w", id, err)
			}
			return node.Engine(nil).Abandon(ctx, parsed)
		},
		Reader:   c,
		Status:   agent.APIStatus{Client: c},
		NodeName: r.nodeName,
		BootID:   strings.TrimSpace(string(bootID)),
		Dump: func(ctx context.Context, dump *v1alpha1.LiveDump, o engine.Options) (*engine.Report, error) {
			unlock, err := engine.LockMemory()
			if err != nil {
				r.log.Warn("memory is not locked", "error", err)
			}
			defer unlock()
			defer limitCPUs(o.Readers)()
			return node.Engine(agent.Target(node, r.kubeletDir, dump, o.Resume)).Dump(ctx, o)
		},
		Unload: node.Loader.Unload,
		SessionAlive: func() (bool, error) {
			loaded, err := kernel.Loaded(module.Name)
			if err != nil || loaded == nil {
				return false, err
			}
			return loaded.Users != 0, nil
		},
		Clock: clock.RealClock{},
		Log:   r.log,
	}, nil
}
