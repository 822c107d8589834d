// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
	applyv1alpha1 "livedump.io/api/v1alpha1/applyconfiguration/api/v1alpha1"
)

func wantForbidden(t *testing.T, err error, message string) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), message) {
		t.Errorf("error: %v\nwant a Forbidden with: %s", err, message)
	}
}

// An agent with a real token of its pod gets at the LiveDumps of its own node, and at the
// agent's part of their status only.
func TestAgentWritesOnlyItsPart(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	a := w.begin(dump)
	w.createNode(w.node+"-b", nil)
	foreign := w.startAgentOn(w.node + "-b")

	t.Run("another node's agent", func(t *testing.T) {
		wantForbidden(t, foreign.report(dump, complete()), "the agent of node "+w.node+"-b may not write the status of a LiveDump of node "+w.node)
	})
	t.Run("a token of no node", func(t *testing.T) {
		unbound := &agent{w: w, client: w.tokenClient(nil)}
		wantForbidden(t, unbound.report(dump, complete()), "the agent's token names no node")
	})
	t.Run("the outcome", func(t *testing.T) {
		status := atWork().WithConditions(agentCondition(v1alpha1.ConditionSucceeded, metav1.ConditionTrue, v1alpha1.ReasonComplete, "so there"))
		wantForbidden(t, a.report(dump, status), "the conditions Accepted, TargetReady, AgentReady and Succeeded are the controller's to write")
	})
	for name, status := range map[string]*applyv1alpha1.LiveDumpStatusApplyConfiguration{
		"target":             atWork().WithTarget(applyv1alpha1.TargetStatus().WithCapacityBytes(1)),
		"node":               atWork().WithNode(applyv1alpha1.NodeIdentity().WithBootID("boot-2")),
		"startTime":          atWork().WithStartTime(metav1.NewTime(time.Unix(1, 0))),
		"completionTime":     atWork().WithCompletionTime(metav1.NewTime(time.Unix(1, 0))),
		"observedGeneration": atWork().WithObservedGeneration(99),
	} {
		t.Run(name, func(t *testing.T) {
			wantForbidden(t, a.report(dump, status), "status."+name+" is the controller's to write")
		})
	}
	t.Run("the spec", func(t *testing.T) {
		err := a.client.Patch(t.Context(), dump.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"desiredState":"Cancel"}}`)))
		wantForbidden(t, err, "cannot patch resource \"livedumps\"")
	})
	t.Run("other rights", func(t *testing.T) {
		wantForbidden(t, a.client.Create(t.Context(), newDump(dumpNamespace, "x", w.node, w.claim)), "cannot create")
		wantForbidden(t, a.client.Delete(t.Context(), dump.DeepCopy()), "cannot delete")
		wantForbidden(t, a.client.List(t.Context(), &corev1.PodList{}, client.InNamespace(dumpNamespace)), "cannot list")
		wantForbidden(t, a.client.List(t.Context(), &corev1.SecretList{}, client.InNamespace(releaseNamespace)), "cannot list")
		wantForbidden(t, a.client.Get(t.Context(), client.ObjectKey{Name: w.node}, &corev1.Node{}), "cannot get")
	})
	t.Run("what it may", func(t *testing.T) {
		if err := a.client.List(t.Context(), &v1alpha1.LiveDumpList{}, client.MatchingFields{"spec.nodeName": w.node}); err != nil {
			t.Errorf("listing LiveDumps: %v", err)
		}
		status := atWork().WithProgress(applyv1alpha1.Progress().WithPercent(50).WithPagesTotal(10).WithPagesWritten(5))
		if err := a.report(dump, status); err != nil {
			t.Errorf("progress: %v", err)
		}
	})
	const taken = "the status of a LiveDump cannot be taken away"
	t.Run("all of the status taken away", func(t *testing.T) {
		err := admin.Status().Patch(t.Context(), dump.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"status":null}`)))
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), taken) {
			t.Errorf("of a LiveDump that runs: %v", err)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		w.must(a.report(dump, complete()))
		w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, "")
		before := w.get(dump).Status
		const over = "the LiveDump has ended; its status does not change any more"
		if err := a.report(dump, gaveUp("IOError", "no, it failed")); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), over) {
			t.Errorf("the agent's change: %v", err)
		}
		for patch, message := range map[string]string{
			`{"status":{"result":{"pagesLost":7}}}`:          over,
			`{"status":{"conditions":null}}`:                 over,
			`{"status":{"conditions":[]}}`:                   over,
			`{"status":null}`:                                taken,
			`[{"op":"remove","path":"/status"}]`:             taken,
			`[{"op":"replace","path":"/status","value":{}}]`: over,
		} {
			kind := types.MergePatchType
			if patch[0] == '[' {
				kind = types.JSONPatchType
			}
			err := admin.Status().Patch(t.Context(), dump.DeepCopy(), client.RawPatch(kind, []byte(patch)))
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), message) {
				t.Errorf("an administrator's change %s: %v, want: %s", patch, err, message)
			}
		}
		if after := w.get(dump).Status; !equality.Semantic.DeepEqual(after, before) {
			t.Errorf("the status changed from %+v to %+v", before, after)
		}
	})
}

func TestNamespacesAreListed(t *testing.T) {
	err := admin.Create(t.Context(), newDump(otherNamespace, "dump", "n", "c"))
	wantForbidden(t, err, "LiveDumps are not allowed in namespace tenant")
	wantForbidden(t, err, "Allowed: dumps")
}

// Whoever may create LiveDumps may still be held to some nodes.
func TestUserMayDumpOneNodeAndNotAnother(t *testing.T) {
	w := newWorld(t)
	const user = "sre@example.org"
	role := func(kind, name string, rules ...rbacv1.PolicyRule) {
		t.Helper()
		meta := metav1.ObjectMeta{Name: name, Namespace: dumpNamespace}
		subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}}
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
		objects := []client.Object{&rbacv1.Role{ObjectMeta: meta, Rules: rules}, &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: ref}}
		if kind == "ClusterRole" {
			meta.Namespace = ""
			objects = []client.Object{&rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: ref}}
		}
		for _, o := range objects {
			w.must(admin.Create(w.ctx, o))
			t.Cleanup(func() { w.must(admin.Delete(context.Background(), o)) })
		}
	}
	role("Role", "sre-"+w.node, rbacv1.PolicyRule{APIGroups: []string{"livedump.io"}, Resources: []string{"livedumps"}, Verbs: []string{"create"}})
	role("ClusterRole", "sre-"+w.node, rbacv1.PolicyRule{APIGroups: []string{"livedump.io"}, Resources: []string{"nodes"},
		ResourceNames: []string{w.node}, Verbs: []string{"dump"}})
	sre, err := client.New(asUser(user), client.Options{Scheme: scheme})
	w.must(err)

	// RBAC reaches the authorizer by its caches.
	eventually(t, func() error {
		return sre.Create(w.ctx, newDump(dumpNamespace, w.node+"-own", w.node, w.claim), client.DryRunAll)
	})
	err = sre.Create(w.ctx, newDump(dumpNamespace, w.node+"-other", w.node+"-b", w.claim), client.DryRunAll)
	wantForbidden(t, err, user+" may not dump node "+w.node+"-b: it takes the verb dump on nodes.livedump.io "+w.node+"-b")
}

// The controller may patch nodes, and nothing of them but its label.
func TestControllerChangesOnlyItsLabel(t *testing.T) {
	w := newWorld(t)
	controller, err := client.New(as(controllerAccount), client.Options{Scheme: scheme})
	w.must(err)
	patch := func(data string) error {
		return controller.Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.node}},
			client.RawPatch("application/merge-patch+json", []byte(data)))
	}
	label := "may change no label of a node but livedump.io/agent"
	wantForbidden(t, patch(`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`), label)
	wantForbidden(t, patch(`{"metadata":{"labels":{"kubernetes.io/os":"plan9"}}}`), label)
	wantForbidden(t, patch(`{"metadata":{"labels":{"kubernetes.io/os":null}}}`), label)
	rest := "may change nothing of a node but the label livedump.io/agent"
	wantForbidden(t, patch(`{"spec":{"unschedulable":true}}`), rest)
	wantForbidden(t, patch(`{"metadata":{"annotations":{"a":"b"}}}`), rest)
	if err := patch(`{"metadata":{"labels":{"livedump.io/agent":"on-demand"}}}`); err != nil {
		t.Errorf("its own label: %v", err)
	}
	// No LiveDump needs the agent here, so the running controller takes the label away again.
	w.awaitLabel(false)

	wantForbidden(t, controller.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.node}}), "cannot delete")
	wantForbidden(t, controller.List(t.Context(), &corev1.SecretList{}, client.InNamespace(releaseNamespace)), "cannot list")
	wantForbidden(t, controller.List(t.Context(), &corev1.PodList{}, client.InNamespace(otherNamespace)), "cannot list")
}

// Every object that the chart can render is one that the API server takes.
func TestRenderedChartIsValid(t *testing.T) {
	for name, args := range map[string][]string{
		"defaults": nil,
		"everything": {"--set=controller.hostNetwork=true,controller.replicas=2,controller.priorityClassName=system-cluster-critical",
			"--set=namespaces={dumps,tenant},imagePullSecrets[0].name=pull,agent.updateStrategy.type=RollingUpdate,agent.healthPort=0",
			"--set=agent.extraArgs={--log-level=debug},agent.kubeletDir=/data/kubelet,crds.keep=false",
			"--set=controller.nodeSelector.pool=infra,controller.tolerations[0].operator=Exists"},
	} {
		t.Run(name, func(t *testing.T) {
			objects, err := render(args...)
			if err != nil {
				t.Fatal(err)
			}
			strict := client.WithFieldValidation(admin, metav1.FieldValidationStrict)
			for _, object := range objects {
				err := strict.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("test"), client.ForceOwnership, client.DryRunAll)
				if err != nil {
					t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
				}
			}
		})
	}
}
