// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"livedump.io/api/v1alpha1"
)

// waitingDump is the n-th LiveDump of a node that was created, with a claim of its own.
func waitingDump(node string, n int) *v1alpha1.LiveDump {
	d := fresh().dump.DeepCopy()
	d.Name, d.UID = fmt.Sprintf("%s-%d", node, n), types.UID(fmt.Sprintf("%s-%04d", node, n))
	d.Spec.NodeName, d.Spec.Target.PersistentVolumeClaim.ClaimName = node, d.Name
	d.CreationTimestamp = metav1.NewTime(start.Add(time.Duration(n) * time.Second))
	return d
}

func runningDump(node string, n int) *v1alpha1.LiveDump {
	d := waitingDump(node, n)
	d.Status.StartTime = &metav1.Time{Time: start}
	return d
}

func TestPlaceInTheLineOfTheNode(t *testing.T) {
	o := fresh()
	o.dump = waitingDump("node", 5)
	o.others = []*v1alpha1.LiveDump{waitingDump("node", 7), waitingDump("node", 4), runningDump("node", 6), waitingDump("node", 3), waitingDump("node-2", 1)}
	f := checkLine(o)
	if f.state != pending || f.reason != v1alpha1.ReasonWaitingInLine || f.place != 3 || !strings.Contains(f.message, "waiting for LiveDump dumps/node-6") || !strings.Contains(f.message, "place 3 in line") {
		t.Errorf("%+v", f)
	}
	if d := decide(o); d.status.PlaceInLine != 3 || d.status.StartTime != nil || d.holder != leave {
		t.Errorf("decision: %+v", d)
	}
}

func TestNoMoreThanTheLimitRun(t *testing.T) {
	o := fresh()
	o.dump, o.maxConcurrent = waitingDump("d", 9), 2
	for name, test := range map[string]struct {
		others []*v1alpha1.LiveDump
		place  int32 // 0: it may begin
	}{
		"alone":                     {nil, 0},
		"one runs":                  {[]*v1alpha1.LiveDump{runningDump("a", 1)}, 0},
		"one runs, a younger waits": {[]*v1alpha1.LiveDump{runningDump("a", 1), waitingDump("b", 10)}, 0},
		"one runs, an older waits":  {[]*v1alpha1.LiveDump{runningDump("a", 1), waitingDump("b", 2)}, 1},
		"two run":                   {[]*v1alpha1.LiveDump{runningDump("a", 1), runningDump("b", 2)}, 1},
		"two run, two wait":         {[]*v1alpha1.LiveDump{runningDump("a", 1), runningDump("b", 2), waitingDump("c", 3), waitingDump("e", 4)}, 3},
		// Whose node is busy cannot begin, so it keeps nobody.
		"one runs, its node's next waits": {[]*v1alpha1.LiveDump{runningDump("a", 1), waitingDump("a", 2), waitingDump("a", 3)}, 0},
		"of a node only the next counts":  {[]*v1alpha1.LiveDump{runningDump("a", 1), runningDump("b", 2), waitingDump("c", 2), waitingDump("c", 3)}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			o.others = test.others
			f := checkLine(o)
			if f.place != test.place || (f.state == fine) != (test.place == 0) {
				t.Errorf("%+v, want place %d", f, test.place)
			}
			if test.place > 0 && !strings.Contains(f.message, "no more than 2") {
				t.Errorf("message %q", f.message)
			}
		})
	}
	// One that runs does not wait, whatever the limit is set to meanwhile.
	o.dump, o.others, o.maxConcurrent = runningDump("d", 9), []*v1alpha1.LiveDump{runningDump("a", 1), runningDump("b", 2)}, 1
	if f := checkLine(o); f.state != fine {
		t.Errorf("one that runs: %+v", f)
	}
}

// With thousands in line, the end of each must not be a write for all the others.
func TestPlacesFarBackAreToldSeldom(t *testing.T) {
	o := fresh()
	o.dump, o.maxConcurrent = waitingDump("me", 5000), 1
	writes := 0
	const ahead = 3000
	line := []*v1alpha1.LiveDump{runningDump("a", 0)}
	for n := range ahead {
		line = append(line, waitingDump(fmt.Sprint("n", n), n))
	}
	for left := ahead; left > 0; left-- {
		if left > 40 && left%97 != 0 {
			continue // time
		}
		o.others = line[:1+left]
		was := o.dump.Status.PlaceInLine
		if d := o.proceed(); d.status.PlaceInLine != was {
			writes++
		}
		place := int(o.dump.Status.PlaceInLine)
		if place < left+1 || place > 2*(left+1) || left < exactPlace && place != left+1 {
			t.Fatalf("with %d ahead the place is %d", left, place)
		}
		if c := condition(o.dump, v1alpha1.ConditionAccepted); !strings.Contains(c.Message, fmt.Sprintf("place %d in line", place)) {
			t.Fatalf("place %d, message %q", place, c.Message)
		}
	}
	if writes > 20 {
		t.Errorf("%d writes for one place", writes)
	}
}

// The cache shows the controller's own writes late. Two LiveDumps of a node must not both begin by that.
func TestStaleCacheLetsNobodyBeginTwice(t *testing.T) {
	o := fresh()
	older := waitingDump("node", 1)
	older.Finalizers = []string{Finalizer}
	o.dump = waitingDump("node", 2)
	o.dump.Finalizers = []string{Finalizer}
	o.claims[0].claim.Namespace, o.claims[0].claim.Name = "dumps", o.dump.Name
	live := reconcilerOn(t, interceptor.Funcs{}, o.dump, o.node, o.claims[0].claim, o.claims[0].volume)
	// The younger one was created and looked at before the older one reached the cache.
	live.Cache = reconcilerOn(t, interceptor.Funcs{}, o.dump, o.node).Reader
	reconcile := func(dump *v1alpha1.LiveDump) *v1alpha1.LiveDump {
		t.Helper()
		if _, err := live.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(dump)}); err != nil {
			t.Fatal(err)
		}
		is := &v1alpha1.LiveDump{}
		if err := live.Reader.Get(t.Context(), client.ObjectKeyFromObject(dump), is); err != nil {
			t.Fatal(err)
		}
		return is
	}
	if first := reconcile(o.dump); first.Status.StartTime == nil {
		t.Fatalf("the younger one was to begin: %+v", first.Status.Conditions)
	}
	// Now the cache has both, but not yet that the younger one began.
	if err := live.Client.Create(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	claim := o.claims[0].claim.DeepCopy()
	claim.Name, claim.UID, claim.ResourceVersion = older.Name, "claim-2", ""
	claim.Spec.VolumeName = "volume-2"
	volume := o.claims[0].volume.DeepCopy()
	volume.Name, volume.ResourceVersion, volume.Spec.ClaimRef.UID = "volume-2", "", "claim-2"
	for _, object := range []client.Object{claim, volume} {
		if err := live.Client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	live.Cache = reconcilerOn(t, interceptor.Funcs{}, waitingDump("node", 2), older, o.node).Reader
	second := reconcile(older)
	if second.Status.StartTime != nil {
		t.Error("two LiveDumps of a node run")
	}
	if c := condition(second, v1alpha1.ConditionAccepted); c == nil || c.Reason != v1alpha1.ReasonWaitingInLine || !strings.Contains(c.Message, o.dump.Name) {
		t.Errorf("Accepted: %+v", c)
	}
}

// A controller that takes over must know who runs, whatever its cache shows.
func TestNewControllerKnowsWhoRuns(t *testing.T) {
	o := fresh()
	runs := runningDump("node", 2)
	o.dump = waitingDump("node", 1)
	r := reconcilerOn(t, interceptor.Funcs{}, o.dump, runs, o.node)
	r.Cache = reconcilerOn(t, interceptor.Funcs{}, o.dump, o.node).Reader // without the one that runs
	if err := r.takeTurn(t.Context(), o.dump, nil); !errors.Is(err, errNotItsTurn) {
		t.Errorf("got %v, want %v", err, errNotItsTurn)
	}
	// What is noted is given up once the LiveDump is gone.
	r.turns.forget(client.ObjectKeyFromObject(runs))
	if err := r.takeTurn(t.Context(), o.dump, nil); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// A glance that finds nothing to do asks the API server for nothing.
func TestGlancesAreFree(t *testing.T) {
	for name, o := range map[string]*observation{"at work": running(), "in line": func() *observation {
		o := fresh()
		o.others = []*v1alpha1.LiveDump{runningDump("node", 1)}
		o.proceed()
		return o
	}()} {
		t.Run(name, func(t *testing.T) {
			o.withHolder().withAgent()
			o.agent.Labels = map[string]string{ComponentLabel: "agent"}
			o.agent.Spec.NodeName = "node"
			o.dump.Finalizers = []string{Finalizer}
			o.claims[0].claim.Namespace, o.holder.Namespace = "dumps", "dumps"
			objects := []client.Object{o.dump, o.node, o.claims[0].claim, o.claims[0].volume, o.holder, o.agent}
			for _, other := range o.others {
				objects = append(objects, other)
			}
			requests := 0
			count := interceptor.Funcs{
				Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, into client.Object, opts ...client.GetOption) error {
					requests++
					return c.Get(ctx, key, into, opts...)
				},
				List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
					requests++
					return c.List(ctx, list, opts...)
				},
				Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
					requests++
					return nil
				},
				SubResourceApply: func(ctx context.Context, c client.Client, sub string, apply runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
					requests++
					return c.SubResource(sub).Apply(ctx, apply, opts...)
				},
			}
			r := reconcilerOn(t, count, objects...)
			r.Cache = reconcilerOn(t, interceptor.Funcs{}, objects...).Reader
			// The first looks settle it; the cache here never sees their writes, so copy them over.
			for range 3 {
				if _, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(o.dump)}); err != nil {
					t.Fatal(err)
				}
				now := &v1alpha1.LiveDump{}
				if err := r.Client.Get(t.Context(), client.ObjectKeyFromObject(o.dump), now); err != nil {
					t.Fatal(err)
				}
				objects[0] = now
				r.Cache = reconcilerOn(t, interceptor.Funcs{}, objects...).Reader
			}
			requests = 0
			for range 10 {
				if _, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(o.dump)}); err != nil {
					t.Fatal(err)
				}
			}
			if requests != 0 {
				t.Errorf("%d requests of 10 looks that had nothing to do", requests)
			}
		})
	}
}

// One that ended while nobody waited for its node must not keep the node for those who come then.
func TestEndIsSeenThoughNobodyLooked(t *testing.T) {
	o := fresh()
	first := waitingDump("node", 1)
	o.dump = waitingDump("node", 2)
	r := reconcilerOn(t, interceptor.Funcs{}, first, o.dump, o.node)
	if err := r.takeTurn(t.Context(), first, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.takeTurn(t.Context(), o.dump, nil); !errors.Is(err, errNotItsTurn) {
		t.Fatalf("while the first runs: %v", err)
	}
	over := first.DeepCopy()
	over.Status.StartTime = &metav1.Time{Time: start}
	over.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionSucceeded, Status: metav1.ConditionTrue}}
	r.Cache = reconcilerOn(t, interceptor.Funcs{}, over, o.dump, o.node).Reader
	if err := r.takeTurn(t.Context(), o.dump, nil); err != nil {
		t.Errorf("after its end: %v", err)
	}
}
