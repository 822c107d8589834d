// SPDX-License-Identifier: Apache-2.0

//go:build envtest

// Package envtest tests the API, the controller and the admission policies against a real
// API server, installed from the chart as it is shipped. There is no scheduler, no kubelet
// and no agent here; the tests play their parts through the API, the agent with a token as
// the kubelet would give it.
package envtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"livedump.io/api/v1alpha1"
	"livedump.io/controllers"
)

const (
	release          = "livedump"
	releaseNamespace = "livedump-system"
	// dumpNamespace is where LiveDumps are allowed; Pod Security is at its strictest there.
	dumpNamespace = "dumps"
	// otherNamespace is where they are not.
	otherNamespace = "tenant"

	agentAccount      = "livedump-agent"
	controllerAccount = "livedump-controller"

	linger = time.Second
)

var (
	scheme = runtime.NewScheme()
	// admin may do everything; tests arrange and look with it.
	admin client.Client
	// adminConfig is how admin reaches the API server.
	adminConfig *rest.Config
	now         = &stepClock{}
)

// stepClock is the real clock plus what tests have stepped it by.
type stepClock struct{ offset atomic.Int64 }

func (c *stepClock) Now() time.Time                  { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *stepClock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }
func (c *stepClock) step(by time.Duration)           { c.offset.Add(int64(by)) }

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "envtest:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return 1, err
	}
	logger := logr.Discard()
	if os.Getenv("VERBOSE") != "" {
		logger = stderrLogger()
	}
	ctrl.SetLogger(logger)
	environment := &envtest.Environment{Scheme: scheme}
	if adminConfig, err = environment.Start(); err != nil {
		return 1, fmt.Errorf("starting the API server: %w", err)
	}
	defer func() { err = errors.Join(err, environment.Stop()) }()
	adminConfig.QPS, adminConfig.Burst = 200, 400

	if admin, err = client.New(adminConfig, client.Options{Scheme: scheme}); err != nil {
		return 1, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := install(ctx); err != nil {
		return 1, fmt.Errorf("installing the chart: %w", err)
	}
	stopped := make(chan error, 1)
	mgr, err := newManager(nil)
	if err != nil {
		return 1, err
	}
	go func() { stopped <- mgr.Start(ctx) }()
	code = m.Run()
	cancel()
	return code, <-stopped
}

// render gives the objects of the chart with these arguments for helm.
func render(args ...string) ([]*unstructured.Unstructured, error) {
	helm := os.Getenv("HELM")
	if helm == "" {
		return nil, errors.New("HELM is not set to the helm binary (run make test-controller)")
	}
	// The version is what the API server's is; helm alone would assume its own.
	command := exec.Command(helm, append([]string{"template", release, filepath.Join("..", "..", "charts", "livedump"),
		"--namespace=" + releaseNamespace, "--kube-version=1.37.1"}, args...)...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("helm template: %w: %s", err, stderr.String())
	}
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(out), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading what helm rendered: %w", err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}

// install applies the chart as helm would, and waits until its CRD is served and its policies are in force.
func install(ctx context.Context) error {
	for _, name := range []string{releaseNamespace, dumpNamespace, otherNamespace} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if name == dumpNamespace {
			namespace.Labels = map[string]string{"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
		}
		if err := admin.Create(ctx, namespace); err != nil {
			return err
		}
	}
	objects, err := render("--set=namespaces={"+dumpNamespace+"}", "--set=admissionPolicies.perNode=true")
	if err != nil {
		return err
	}
	if len(objects) == 0 {
		return errors.New("the chart rendered nothing")
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int {
		crd := func(o *unstructured.Unstructured) int {
			if o.GetKind() == "CustomResourceDefinition" {
				return 0
			}
			return 1
		}
		return crd(a) - crd(b)
	})
	strict := client.WithFieldValidation(admin, metav1.FieldValidationStrict)
	for _, object := range objects {
		if object.GetAnnotations()["helm.sh/hook"] != "" {
			continue // not a part of the release; helm makes it when its time has come
		}
		if err := strict.Create(ctx, object); err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	if err := waitFor(ctx, func() error { return admin.List(ctx, &v1alpha1.LiveDumpList{}) }); err != nil {
		return fmt.Errorf("the CRD is not served: %w", err)
	}
	// A policy is in force some time after it was created.
	return waitFor(ctx, func() error {
		err := admin.Create(ctx, newDump(otherNamespace, "probe", "n", "c"), client.DryRunAll)
		if err == nil {
			return errors.New("the admission policies are not in force")
		}
		return nil
	})
}

// newManager runs the controllers with the rights of the chart's service account. With reader they read what is in no
// cache; nil is the manager's own.
func newManager(reader client.Reader) (ctrl.Manager, error) {
	selector, err := labels.Parse("app.kubernetes.io/name=livedump,app.kubernetes.io/instance=" + release + ",app.kubernetes.io/component=agent")
	if err != nil {
		return nil, err
	}
	config := controllers.Config{
		Namespaces:            []string{dumpNamespace},
		AgentNamespace:        releaseNamespace,
		AgentSelector:         selector,
		HolderImage:           "example.test/controller:1",
		HolderImagePullPolicy: corev1.PullIfNotPresent,
	}
	mgr, err := ctrl.NewManager(as(controllerAccount), ctrl.Options{
		Scheme:  scheme,
		Cache:   controllers.CacheOptions(config),
		Metrics: metricsserver.Options{BindAddress: "0"},
		// A test may have another manager in this process.
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		return nil, err
	}
	if reader == nil {
		reader = mgr.GetAPIReader()
	}
	return mgr, controllers.SetupWithManager(mgr,
		&controllers.LiveDumpReconciler{Config: config, Client: mgr.GetClient(), Reader: reader,
			Recorder: mgr.GetEventRecorder(controllers.FieldManager), Clock: now},
		&controllers.PlacementReconciler{Client: mgr.GetClient(), Reader: reader, Clock: now, Linger: linger})
}

// as gives the rights of a service account of the release.
func as(account string) *rest.Config {
	return asUser("system:serviceaccount:"+releaseNamespace+":"+account,
		"system:serviceaccounts", "system:serviceaccounts:"+releaseNamespace)
}

func asUser(name string, groups ...string) *rest.Config {
	config := rest.CopyConfig(adminConfig)
	config.Impersonate = rest.ImpersonationConfig{UserName: name, Groups: append(groups, "system:authenticated")}
	return config
}

// waitFor polls until check passes; its error after the deadline is the check's last.
func waitFor(ctx context.Context, check func() error) error {
	const deadline = 120 * time.Second // a machine may be busy with a build
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", deadline, err)
		case <-tick.C:
		}
	}
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	if err := waitFor(t.Context(), check); err != nil {
		t.Fatal(err)
	}
}
