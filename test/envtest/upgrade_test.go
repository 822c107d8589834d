// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

// checkOut puts the previous release's sources into a directory.
func checkOut(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command(filepath.Join("..", "..", "hack", "previous-release"), dir).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 77 {
		t.Skip(string(out))
	}
	if err != nil {
		t.Fatalf("the previous release is in the history of the repository, which must be whole: %v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "charts/livedump/Chart.yaml")); err != nil {
		t.Fatalf("the previous release has no chart: %v", err)
	}
	return dir
}

// helm runs helm as an administrator would.
func helm(t *testing.T, kubeconfig string, args ...string) {
	t.Helper()
	command := exec.Command(os.Getenv("HELM"), append(args, "--namespace="+releaseNamespace)...)
	command.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HOME="+t.TempDir())
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("helm %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// The previous release's chart and controller are replaced while a dump runs and another waits; then the release is
// removed, with LiveDumps in every state.
func TestUpgradeAndUninstall(t *testing.T) {
	kubeconfig := elsewhere(t)
	createNamespaces(t, releaseNamespace, dumpNamespace, otherNamespace)
	old := checkOut(t)
	oldController := filepath.Join(t.TempDir(), "livedump-controller")
	build := exec.Command("go", "build", "-o", oldController, "./cmd/livedump-controller")
	build.Dir, build.Env = old, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the previous controller: %v: %s", err, out)
	}
	allowed := "--set=namespaces={" + dumpNamespace + "}"
	helm(t, kubeconfig, "install", release, filepath.Join(old, "charts/livedump"), allowed)
	eventually(t, func() error { return admin.List(t.Context(), &v1alpha1.LiveDumpList{}) })

	w := newWorld(t)
	controller := w.startController(oldController)
	running := w.create("running", nil)
	a := w.begin(running)
	second := w.claim + "-second"
	w.createVolume(second, w.node, "4Gi", corev1.PersistentVolumeBlock)
	w.createClaim(second, corev1.PersistentVolumeBlock)
	w.bind(second)
	waiting := w.create("waiting", func(d *v1alpha1.LiveDump) { d.Spec.Target.PersistentVolumeClaim.ClaimName = second })
	w.await(waiting, v1alpha1.ConditionAccepted, metav1.ConditionUnknown, v1alpha1.ReasonWaitingInLine)
	before := w.get(running)

	current := filepath.Join("..", "..", "charts", "livedump")
	helm(t, kubeconfig, "upgrade", release, current, allowed)
	controller.kill() // as a node failure in the middle of the upgrade would
	controller = w.startController(os.Getenv("CONTROLLER"))

	// The CRD is the new one, and the new controller goes on with what the old one began.
	eventually(t, func() error {
		if place := w.get(waiting).Status.PlaceInLine; place != 1 {
			return fmt.Errorf("place in line %d, want 1", place)
		}
		return nil
	})
	after := w.get(running)
	if after.UID != before.UID || after.Generation != before.Generation || after.Status.Session != before.Status.Session ||
		!after.Status.StartTime.Equal(before.Status.StartTime) || len(after.Finalizers) == 0 {
		t.Errorf("the running LiveDump changed from %+v to %+v", before, after)
	}
	if pod, err := w.holder(running); err != nil || pod == nil || string(pod.UID) != before.Status.Target.HolderPodUID || pod.DeletionTimestamp != nil {
		t.Errorf("the holder of the running dump: %v, %v", pod, err)
	}
	w.awaitLabel(true)
	w.must(a.report(running, complete()))
	w.await(running, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, v1alpha1.ReasonComplete)

	// Its successor is at work when the release is removed, and the agent says nothing any more; a third one waits.
	w.await(waiting, v1alpha1.ConditionAccepted, metav1.ConditionTrue, "")
	w.runHolder(waiting)
	w.await(waiting, v1alpha1.ConditionTargetReady, metav1.ConditionTrue, "")
	w.must(a.report(waiting, atWork()))
	w.await(waiting, v1alpha1.ConditionSucceeded, metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	third := w.create("third", nil)
	w.await(third, v1alpha1.ConditionAccepted, metav1.ConditionUnknown, v1alpha1.ReasonWaitingInLine)

	job := exec.Command(os.Getenv("CONTROLLER"), "uninstall", "--patience=5s")
	job.Env = append(os.Environ(), "KUBECONFIG="+w.kubeconfig(controllerAccount))
	if out, err := job.CombinedOutput(); err != nil {
		t.Fatalf("the uninstall job: %v: %s", err, out)
	}
	for dump, says := range map[*v1alpha1.LiveDump]string{waiting: "did not confirm", third: "before the agent began"} {
		fresh := w.get(dump)
		c := meta.FindStatusCondition(fresh.Status.Conditions, v1alpha1.ConditionSucceeded)
		if c == nil || c.Status != metav1.ConditionFalse || c.Reason != v1alpha1.ReasonCanceled || !strings.Contains(c.Message, says) || fresh.Status.CompletionTime == nil {
			t.Errorf("LiveDump %s: %+v, want Canceled: %s", dump.Name, c, says)
		}
	}
	controller.kill() // from here on nobody releases anything
	for _, dump := range []*v1alpha1.LiveDump{running, waiting, third} {
		if fresh := w.get(dump); len(fresh.Finalizers) > 0 {
			t.Errorf("LiveDump %s keeps the finalizers %v", dump.Name, fresh.Finalizers)
		}
	}
	w.await(running, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, v1alpha1.ReasonComplete)
	w.awaitLabel(false)

	// The job's hook needs a job controller, so here it was run by hand.
	helm(t, kubeconfig, "uninstall", release, "--no-hooks")
	for _, dump := range []*v1alpha1.LiveDump{running, waiting, third} {
		w.must(admin.Delete(t.Context(), w.get(dump)))
		w.awaitGone(dump)
	}
	// The CRD goes only with a release that was told so.
	helm(t, kubeconfig, "install", release, current, allowed, "--set=crds.keep=false")
	helm(t, kubeconfig, "uninstall", release, "--no-hooks")
	eventually(t, func() error {
		err := admin.List(context.Background(), &v1alpha1.LiveDumpList{})
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			return nil
		}
		return errors.Join(errors.New("the CRD is still there"), client.IgnoreNotFound(err))
	})
}
