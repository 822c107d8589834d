// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
	"livedump.io/controllers"
	"livedump.io/test/cluster"
)

// creators is how many objects are created at a time.
const creators = 16

func nodeName(n int) string    { return fmt.Sprintf("node-%04d", n) }
func claimNameOf(n int) string { return fmt.Sprintf("claim-%05d", n) }

// bootID of a node; kwok has none of its own.
func bootID(node string) string { return "boot-of-" + node }

func inParallel(ctx context.Context, n int, do func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(creators)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}

// populate makes the nodes, and for each LiveDump a claim that is bound to a local volume of its node.
func (c *scaleCluster) populate(ctx context.Context, o options) error {
	say("creating %d nodes and %d claims", o.nodes, o.livedumps)
	if err := inParallel(ctx, o.nodes, c.createNode); err != nil {
		return err
	}
	if err := inParallel(ctx, o.livedumps, func(ctx context.Context, i int) error {
		return c.createClaim(ctx, claimNameOf(i), nodeName(i%o.nodes))
	}); err != nil {
		return err
	}
	return cluster.Poll(ctx, "nodes that kwok makes Ready", 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		list := &corev1.NodeList{}
		if err := c.admin.List(ctx, list); err != nil {
			return false, "", err
		}
		ready := 0
		for _, node := range list.Items {
			for _, condition := range node.Status.Conditions {
				if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		return ready == o.nodes, fmt.Sprintf("%d of %d", ready, o.nodes), nil
	})
}

func (c *scaleCluster) createNode(ctx context.Context, i int) error {
	name := nodeName(i)
	resources := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("128Gi"), corev1.ResourcePods: resource.MustParse("110")}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"}},
		Status: corev1.NodeStatus{Capacity: resources, Allocatable: resources,
			NodeInfo: corev1.NodeSystemInfo{BootID: bootID(name), KernelVersion: "6.1.0-scale", OperatingSystem: "linux", Architecture: "amd64"}},
	}
	if err := c.admin.Create(ctx, node); err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	return nil
}

func (c *scaleCluster) createClaim(ctx context.Context, name, node string) error {
	block, class := corev1.PersistentVolumeBlock, "disks"
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Gi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	claim := &corev1.PersistentVolumeClaim{
		// The annotation is how the scheduler knows that the volume binder is done.
		ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: name, Annotations: map[string]string{"pv.kubernetes.io/bind-completed": "yes"}},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeMode: &block, StorageClassName: &class, AccessModes: modes, VolumeName: name,
			Resources: corev1.VolumeResourceRequirements{Requests: size}},
	}
	if err := c.admin.Create(ctx, claim); err != nil {
		return fmt.Errorf("claim %s: %w", name, err)
	}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		Capacity: size, VolumeMode: &block, AccessModes: modes, StorageClassName: class,
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/dev/disk/by-id/" + name}},
		ClaimRef:               &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: dumpNamespace, Name: name, UID: claim.UID},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}},
	}}
	if err := c.admin.Create(ctx, volume); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	claim.Status.Phase, claim.Status.Capacity, claim.Status.AccessModes = corev1.ClaimBound, size, modes
	if err := c.admin.Status().Update(ctx, claim); err != nil {
		return fmt.Errorf("claim %s: %w", name, err)
	}
	return nil
}

// createDumps creates a LiveDump for each claim: first one for every node, then the next.
func (c *scaleCluster) createDumps(ctx context.Context, o options) error {
	return inParallel(ctx, o.livedumps, func(ctx context.Context, i int) error {
		dump := &v1alpha1.LiveDump{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: fmt.Sprintf("dump-%05d", i)},
			Spec: v1alpha1.LiveDumpSpec{NodeName: nodeName(i % o.nodes), TimeoutSeconds: 3600,
				Target: v1alpha1.Target{PersistentVolumeClaim: &v1alpha1.PersistentVolumeClaimTarget{ClaimName: claimNameOf(i)}}}}
		if err := c.admin.Create(ctx, dump); err != nil {
			return fmt.Errorf("LiveDump %s: %w", dump.Name, err)
		}
		return nil
	})
}

// awaitConverged waits until all LiveDumps have ended and hold on to nothing any more: no finalizer, no holder, no
// label on a node. It returns how many ended with which reason. What is counted comes by a watch, for to list thousands again and
// again would be a good part of what is measured; the last word is the API server's.
func (c *scaleCluster) awaitConverged(ctx context.Context, livedumps int) (map[string]int, error) {
	watched, err := cache.New(c.config, cache.Options{Scheme: c.scheme, DefaultTransform: cache.TransformStripManagedFields(),
		DefaultNamespaces: map[string]cache.Config{dumpNamespace: {}}})
	if err != nil {
		return nil, err
	}
	watchCtx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { _ = watched.Start(watchCtx) }() // it ends with the context only
	said := time.Now()
	for {
		seen, err := c.count(ctx, watched)
		if err == nil && seen.converged(livedumps) {
			if seen, err = c.count(ctx, c.admin); err == nil && seen.converged(livedumps) {
				say("%s", seen)
				return seen.outcomes, nil
			}
		}
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		if time.Since(said) > 20*time.Second {
			say("%s", seen)
			said = time.Now()
		}
		select {
		case <-ctx.Done():
			return seen.outcomes, fmt.Errorf("%w: %s", context.Cause(ctx), seen)
		case <-time.After(time.Second):
		}
	}
}

// state is how far the cluster has come.
type state struct {
	outcomes                               map[string]int // of the LiveDumps that have ended, by reason
	livedumps, finalizers, holders, labels int
}

func (s state) ended() (n int) {
	for _, of := range s.outcomes {
		n += of
	}
	return n
}

func (s state) converged(livedumps int) bool {
	return s.ended() == livedumps && s.finalizers == 0 && s.holders == 0 && s.labels == 0
}

func (s state) String() string {
	return fmt.Sprintf("%d of %d ended, %d finalizers, %d holders, %d nodes with the label", s.ended(), s.livedumps, s.finalizers, s.holders, s.labels)
}

func (c *scaleCluster) count(ctx context.Context, reader client.Reader) (state, error) {
	s := state{outcomes: map[string]int{}}
	dumps := &v1alpha1.LiveDumpList{}
	holders, nodes := &metav1.PartialObjectMetadataList{}, &metav1.PartialObjectMetadataList{}
	holders.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	nodes.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NodeList"))
	if err := errors.Join(reader.List(ctx, dumps, client.InNamespace(dumpNamespace), client.UnsafeDisableDeepCopy),
		reader.List(ctx, holders, client.InNamespace(dumpNamespace)), reader.List(ctx, nodes, client.HasLabels{controllers.AgentLabel})); err != nil {
		return s, err
	}
	s.livedumps, s.holders, s.labels = len(dumps.Items), len(holders.Items), len(nodes.Items)
	for i := range dumps.Items {
		succeeded := meta.FindStatusCondition(dumps.Items[i].Status.Conditions, v1alpha1.ConditionSucceeded)
		if succeeded != nil && succeeded.Status != metav1.ConditionUnknown {
			s.outcomes[succeeded.Reason]++
		}
		if len(dumps.Items[i].Finalizers) > 0 {
			s.finalizers++
		}
	}
	return s, nil
}
