// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// elsewhere gives the test an API server of its own, for what would disturb the others, and returns the path of
// an administrator's kubeconfig. Tests run one after the other, so the servers can change places.
func elsewhere(t *testing.T) (kubeconfig string) {
	t.Helper()
	environment := &envtest.Environment{Scheme: scheme}
	config, err := environment.Start()
	t.Cleanup(func() {
		if err := environment.Stop(); err != nil {
			t.Error(err)
		}
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	config.QPS, config.Burst = 200, 400
	c, err := client.New(config, client.Options{Scheme: scheme})
	must(err)
	previous, previousConfig := admin, adminConfig
	admin, adminConfig = c, config
	t.Cleanup(func() { admin, adminConfig = previous, previousConfig })

	user, err := environment.AddUser(envtest.User{Name: "operator", Groups: []string{"system:masters"}}, config)
	must(err)
	text, err := user.KubeConfig()
	must(err)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	must(os.WriteFile(kubeconfig, text, 0o600))
	return kubeconfig
}

func createNamespaces(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
}

// server is a process that is killed with the test; a log of what it said is shown if the test fails.
type server struct{ kill func() }

func startServer(t *testing.T, binary string, environment []string, args ...string) *server {
	t.Helper()
	if binary == "" {
		t.Fatal("the binary of a server is not set (run make test-controller)")
	}
	var log bytes.Buffer
	command := exec.Command(binary, args...)
	command.Env = append(os.Environ(), environment...)
	command.Stdout, command.Stderr = &log, &log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	s := &server{kill: sync.OnceFunc(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("the output of %s:\n%s", filepath.Base(binary), log.String())
		}
	})
	return s
}

// startController runs a controller's binary with the token of its account.
func (w *world) startController(binary string, args ...string) *server {
	w.t.Helper()
	return startServer(w.t, binary, []string{"POD_NAMESPACE=" + releaseNamespace, "KUBECONFIG=" + w.kubeconfig(controllerAccount)},
		append([]string{"--namespaces=" + dumpNamespace, "--holder-image=example.test/controller:1", "--metrics-bind-address=0",
			"--health-probe-bind-address=0", "--leader-elect=false",
			"--agent-selector=app.kubernetes.io/name=livedump,app.kubernetes.io/instance=" + release + ",app.kubernetes.io/component=agent"}, args...)...)
}

// A namespace that is deleted takes its LiveDumps with it, whatever they are at and whether anybody is there to confirm
// anything; its roles, the controller's among them, go in no order.
func TestNamespaceDeleted(t *testing.T) {
	kubeconfig := elsewhere(t)
	if err := install(t.Context()); err != nil {
		t.Fatal(err)
	}
	startServer(t, os.Getenv("CONTROLLER_MANAGER"), nil, "--kubeconfig="+kubeconfig, "--leader-elect=false", "--secure-port=0",
		"--controllers=namespace-controller,persistentvolumeclaim-protection-controller,garbage-collector-controller", "--kube-api-qps=100", "--kube-api-burst=200")
	waits, works, silent := newWorld(t), newWorld(t), newWorld(t)
	works.startController(os.Getenv("CONTROLLER"))

	waiting := waits.create("waits", nil)
	waits.runHolder(waiting)
	line := works.create("works", nil)
	a := works.begin(line)
	works.create("in-line", nil)
	lost := silent.create("silent", nil)
	dead := silent.begin(lost)
	dead.kill()
	silent.setReady(corev1.ConditionUnknown)

	if err := admin.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: dumpNamespace}}); err != nil {
		t.Fatal(err)
	}
	// The agent that is there does as it is told, as long as its role is there. Pods go before LiveDumps are deleted.
	eventually(t, func() error {
		fresh := works.get(line)
		if fresh.DeletionTimestamp == nil {
			return errors.Join(errors.New("not deleted yet"), terminatePods(t.Context()))
		}
		return nil
	})
	if err := a.report(line, gaveUp("Canceled", "canceled")); err != nil {
		t.Logf("the agent's report: %v", err)
	}
	eventually(t, func() error {
		err := admin.Get(t.Context(), client.ObjectKey{Name: dumpNamespace}, &corev1.Namespace{})
		if client.IgnoreNotFound(err) == nil && err != nil {
			return nil
		}
		return errors.Join(errors.New("the namespace is still there"), err, terminatePods(t.Context()))
	})
}

// terminatePods plays the kubelets, or the garbage collector of pods on dead nodes.
func terminatePods(ctx context.Context) error {
	pods := &corev1.PodList{}
	if err := admin.List(ctx, pods, client.InNamespace(dumpNamespace)); err != nil {
		return err
	}
	var errs []error
	for i := range pods.Items {
		if pods.Items[i].DeletionTimestamp != nil {
			errs = append(errs, client.IgnoreNotFound(admin.Delete(ctx, &pods.Items[i], client.GracePeriodSeconds(0))))
		}
	}
	return errors.Join(errs...)
}
