// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"livedump.io/api/v1alpha1"
	"livedump.io/controllers"
)

// namespaceVariable holds the controller's own namespace; the chart sets it.
const namespaceVariable = "POD_NAMESPACE"

// options are the flags of the controller.
type options struct {
	namespaces       string
	agentNamespace   string
	agentSelector    string
	holderImage      string
	holderPullPolicy string
	maxConcurrent    int
	metricsAddress   string
	probeAddress     string
	leaderElect      bool
	leaderNamespace  string
	showVersion      bool
	zap              zap.Options
	ownNamespace     string
	parsedConfig     controllers.Config
}

func parseOptions(args []string, out io.Writer) (*options, error) {
	o := &options{ownNamespace: os.Getenv(namespaceVariable)}
	flags := flag.NewFlagSet("livedump-controller", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, usage, "\nFlags:\n")
		flags.PrintDefaults()
	}
	flags.StringVar(&o.namespaces, "namespaces", "", "comma-separated `namespaces` in which LiveDumps are carried out (default: the controller's own, $"+namespaceVariable+")")
	flags.StringVar(&o.agentNamespace, "agent-namespace", "", "`namespace` of the agent's DaemonSet (default: the controller's own)")
	flags.StringVar(&o.agentSelector, "agent-selector", controllers.NameLabel+"=livedump,"+controllers.ComponentLabel+"=agent", "label `selector` of the agent's pods")
	flags.StringVar(&o.holderImage, "holder-image", "", "`image` of holder pods: the controller's own image (required)")
	flags.StringVar(&o.holderPullPolicy, "holder-image-pull-policy", string(corev1.PullIfNotPresent), "pull `policy` of that image: Always, IfNotPresent or Never")
	flags.IntVar(&o.maxConcurrent, "max-concurrent-dumps", 0, "how many LiveDumps may run at a time in the whole cluster, one for each node at most; the others wait in line. 0: no limit")
	flags.StringVar(&o.metricsAddress, "metrics-bind-address", ":8443", "`address` for metrics (HTTPS, with authentication and authorisation); 0: no metrics")
	flags.StringVar(&o.probeAddress, "health-probe-bind-address", ":8081", "`address` for /healthz and /readyz")
	flags.BoolVar(&o.leaderElect, "leader-elect", true, "work only while holding the leader lease")
	flags.StringVar(&o.leaderNamespace, "leader-election-namespace", "", "`namespace` of the leader lease (default: the controller's own)")
	flags.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	o.zap.BindFlags(flags)
	if err := flags.Parse(args); err != nil {
		return nil, usageError{err}
	}
	if flags.NArg() > 0 {
		return nil, usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	if o.showVersion {
		return o, nil
	}
	return o, o.complete()
}

// complete fills in defaults and checks what was given.
func (o *options) complete() error {
	if o.ownNamespace == "" && (o.namespaces == "" || o.agentNamespace == "" || o.leaderElect && o.leaderNamespace == "") {
		return usageError{fmt.Errorf("$%s is not set: give --namespaces, --agent-namespace and --leader-election-namespace", namespaceVariable)}
	}
	namespaces := strings.Split(cmp.Or(o.namespaces, o.ownNamespace), ",")
	for i := range namespaces {
		namespaces[i] = strings.TrimSpace(namespaces[i])
		if problems := validation.IsDNS1123Label(namespaces[i]); len(problems) > 0 {
			return usageError{fmt.Errorf("--namespaces: %q is no namespace: %s", namespaces[i], strings.Join(problems, "; "))}
		}
	}
	slices.Sort(namespaces)
	selector, err := labels.Parse(o.agentSelector)
	if err != nil {
		return usageError{fmt.Errorf("--agent-selector: %w", err)}
	}
	switch policy := corev1.PullPolicy(o.holderPullPolicy); policy {
	case corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		return usageError{fmt.Errorf("--holder-image-pull-policy: %q is none of Always, IfNotPresent, Never", policy)}
	}
	if o.holderImage == "" {
		return usageError{errors.New("--holder-image is required: the image of this controller")}
	}
	if o.maxConcurrent < 0 {
		return usageError{errors.New("--max-concurrent-dumps must not be negative")}
	}
	o.leaderNamespace = cmp.Or(o.leaderNamespace, o.ownNamespace)
	o.parsedConfig = controllers.Config{
		Namespaces:            slices.Compact(namespaces),
		AgentNamespace:        cmp.Or(o.agentNamespace, o.ownNamespace),
		AgentSelector:         selector,
		HolderImage:           o.holderImage,
		HolderImagePullPolicy: corev1.PullPolicy(o.holderPullPolicy),
		MaxConcurrent:         o.maxConcurrent,
	}
	return nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme))
}

// run is the controller, until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parseOptions(args, out)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.showVersion {
		return printVersion(out)
	}
	ctrl.SetLogger(zap.New(zap.UseFlagOptions(&o.zap)))

	restConfig, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("finding the API server: %w", err)
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme: scheme,
		Cache:  controllers.CacheOptions(o.parsedConfig),
		Metrics: metricsserver.Options{
			BindAddress:    o.metricsAddress,
			SecureServing:  true,
			FilterProvider: filters.WithAuthenticationAndAuthorization,
			// HTTP/2 lets an unauthenticated client make the server work for streams that it resets.
			TLSOpts: []func(*tls.Config){func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }},
		},
		HealthProbeBindAddress:  o.probeAddress,
		LeaderElection:          o.leaderElect,
		LeaderElectionID:        "controller.livedump.io",
		LeaderElectionNamespace: o.leaderNamespace,
		// An API server under load is slow to renew a lease, and to lose it for that would only add to the load.
		LeaseDuration: ptr.To(30 * time.Second), RenewDeadline: ptr.To(20 * time.Second), RetryPeriod: ptr.To(4 * time.Second),
		// The process ends when the manager does, so the lease can be given up at once.
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return fmt.Errorf("setting up the manager: %w", err)
	}
	live := &controllers.LiveDumpReconciler{
		Config:   o.parsedConfig,
		Client:   mgr.GetClient(),
		Reader:   mgr.GetAPIReader(),
		Recorder: mgr.GetEventRecorder(controllers.FieldManager),
		Clock:    clock.RealClock{},
	}
	placement := &controllers.PlacementReconciler{Client: mgr.GetClient(), Reader: mgr.GetAPIReader(), Clock: clock.RealClock{}, Linger: controllers.DefaultLinger}
	if err := controllers.SetupWithManager(mgr, live, placement); err != nil {
		return fmt.Errorf("setting up the controllers: %w", err)
	}
	if err := metrics.Registry.Register(controllers.Inventory{Reader: mgr.GetClient()}); err != nil {
		return fmt.Errorf("setting up the metrics: %w", err)
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("ping", healthz.Ping)); err != nil {
		return err
	}
	ctrl.Log.Info("Starting", "version", version, "namespaces", o.parsedConfig.Namespaces, "agentNamespace", o.parsedConfig.AgentNamespace)
	return mgr.Start(ctx)
}
