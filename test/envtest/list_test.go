// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"livedump.io/api/v1alpha1"
	"livedump.io/controllers"
)

// oneByOne is a client with the controller's rights that gets a list for which it asks in chunks one object at a time, as one
// of some hundreds comes in several; and how many of the chunks were not the first.
func oneByOne(t *testing.T) (client.Client, *atomic.Int64) {
	t.Helper()
	c, err := client.NewWithWatch(as(controllerAccount), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	further := &atomic.Int64{}
	return interceptor.NewClient(c, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			asked := (&client.ListOptions{}).ApplyOptions(opts)
			if asked.Limit > 0 {
				asked.Limit = 1
			}
			if asked.Continue != "" {
				further.Add(1)
			}
			return c.List(ctx, list, asked)
		},
	}), further
}

// A controller that takes over reads in several chunks who has begun, and takes nobody for begun who waits.
func TestNewControllerLetsThoseInLineBegin(t *testing.T) {
	elsewhere(t)
	if err := install(t.Context()); err != nil {
		t.Fatal(err)
	}
	other, w := newWorld(t), newWorld(t)
	previous := w.startController(os.Getenv("CONTROLLER"))
	// The API server lists in the order of names: one that runs, those in line, and the one that they wait for.
	other.begin(other.create("a-runs", nil))
	last := w.create("z-runs", nil)
	a := w.begin(last)
	var line []*v1alpha1.LiveDump
	for i := range 2 {
		claim := w.anotherClaim(fmt.Sprint(i))
		dump := w.create(fmt.Sprintf("line-%d", i), func(d *v1alpha1.LiveDump) { d.Spec.Target.PersistentVolumeClaim.ClaimName = claim })
		w.await(dump, v1alpha1.ConditionAccepted, metav1.ConditionUnknown, v1alpha1.ReasonWaitingInLine)
		line = append(line, dump)
	}
	previous.kill()

	reader, further := oneByOne(t)
	mgr, err := newManager(reader)
	w.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- mgr.Start(ctx) }()
	defer func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}()
	w.must(a.report(last, complete()))
	eventually(t, func() error {
		for _, dump := range line {
			if w.get(dump).Status.StartTime != nil {
				return nil
			}
		}
		return errors.New("the node is free, and nobody of those in line begins")
	})
	if n := further.Load(); n < 3 {
		t.Errorf("%d chunks after the first one, want 3 at least: the test shows nothing", n)
	}
}

// All LiveDumps are canceled though they come in several chunks, and what one is at, deleted here, is not taken for what the next one is at.
func TestUninstallWithoutController(t *testing.T) {
	elsewhere(t)
	if err := install(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, second := newWorld(t), newWorld(t)
	controller := first.startController(os.Getenv("CONTROLLER"))
	dying, running := first.create("a-dying", nil), second.create("b-running", nil)
	first.begin(dying)
	second.begin(running)
	controller.kill()
	first.must(admin.Delete(t.Context(), dying.DeepCopy()))

	c, further := oneByOne(t)
	u := controllers.Uninstaller{Client: c, Clock: now, Patience: 5 * time.Second}
	first.must(u.Run(t.Context()))
	if is := second.get(running); is.Spec.DesiredState != v1alpha1.DesiredStateCancel {
		t.Errorf("the agent of LiveDump %s is not told to end it: desiredState %s", is.Name, is.Spec.DesiredState)
	}
	// A LiveDump stays with its CRD, so nothing but this takes back what it holds on to.
	second.await(running, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonCanceled)
	second.awaitReleased(running)
	first.awaitGone(dying)
	if pod, err := first.holder(dying); err != nil || pod != nil && pod.DeletionTimestamp == nil {
		t.Errorf("the holder of the LiveDump that was deleted: %v, %v", pod, err)
	}
	if further.Load() == 0 {
		t.Error("all LiveDumps came at once: the test shows nothing")
	}
}
