// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/test/cluster"
	"livedump.io/test/faultrow"
	"livedump.io/test/trial"
)

// fault is something that happens to the cluster while pages are being written.
type fault struct {
	name     string
	expected string // reason of Succeeded; empty: the LiveDump is gone
	happen   func(b *Bench, ctx context.Context, dump *livedumpv1alpha1.LiveDump) error
}

const (
	apiAway = 60 * time.Second
	gone    = "deleted"
)

var clusterFaults = []fault{
	{"cluster: agent killed", livedumpv1alpha1.ReasonComplete, (*Bench).killAgent},
	{"cluster: agent's pod deleted (upgrade)", livedumpv1alpha1.ReasonComplete, (*Bench).deleteAgentPod},
	{"cluster: API server away for 60 s", livedumpv1alpha1.ReasonComplete, (*Bench).apiServerAway},
	{"cluster: holder evicted", livedumpv1alpha1.ReasonComplete, (*Bench).evictHolder},
	{"cluster: canceled", livedumpv1alpha1.ReasonCanceled, (*Bench).cancelDump},
	{"cluster: LiveDump deleted", gone, (*Bench).deleteDump},
}

// faults lets one after the other happen in the middle of a dump. The next LiveDump shows that the one before
// left nothing behind.
func (b *Bench) faultTable(ctx context.Context) error {
	only, err := regexp.Compile(b.Options.Faults)
	if err != nil {
		return err
	}
	var rows []faultrow.Row
	var problems []error
	for _, f := range clusterFaults {
		if !only.MatchString(f.name) {
			continue
		}
		b.Step("  %s", f.name)
		row, err := b.fault(ctx, f, fmt.Sprintf("fault-%d", len(rows)))
		rows = append(rows, row)
		b.Step("  %s: %s", f.name, row.Seen)
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		problems = append(problems, err)
	}
	if len(rows) == 0 {
		return fmt.Errorf("no fault has a name that matches %q", b.Options.Faults)
	}
	faultrow.Print(rows)
	return errors.Join(append(problems, trial.WriteJSON(filepath.Join(b.Options.Out, "faults.json"), rows))...)
}

func (b *Bench) fault(ctx context.Context, f fault, name string) (row faultrow.Row, err error) {
	row = faultrow.Row{Fault: f.name, Expected: f.expected, Header: "?"}
	defer func() {
		if err != nil {
			row.Seen += ": " + err.Error()
			err = fmt.Errorf("%s: %w", f.name, err)
		}
		row.OK = err == nil
	}()
	before, err := b.PageTables(ctx)
	if err != nil {
		return row, err
	}
	if err := b.create(ctx, name, NodeName, ClaimName); err != nil {
		return row, err
	}
	var dump *livedumpv1alpha1.LiveDump
	if err := b.Follow(ctx, name, "pages being written", func(d *livedumpv1alpha1.LiveDump) (bool, error) {
		dump = d
		if c := apimeta.FindStatusCondition(d.Status.Conditions, livedumpv1alpha1.ConditionCaptured); c != nil && c.Status != metav1.ConditionUnknown {
			return false, fmt.Errorf("the dump was over before anything could happen: %s", summary(d))
		}
		return d.Status.Progress.PagesWritten > 0, nil
	}); err != nil {
		return row, err
	}
	if err := f.happen(b, ctx, dump); err != nil {
		return row, err
	}
	if f.expected == gone {
		if err := b.awaitGone(ctx, name); err != nil {
			return row, err
		}
		row.Seen = gone
	} else {
		if dump, err = b.AwaitEnd(ctx, name); err != nil {
			return row, err
		}
		row.Seen = apimeta.FindStatusCondition(dump.Status.Conditions, livedumpv1alpha1.ConditionSucceeded).Reason
	}
	if row.Header, err = faultrow.Header(b.Target); err != nil {
		return row, err
	}
	if row.Seen != f.expected {
		return row, errors.New(summary(dump))
	}
	if row.Seen == livedumpv1alpha1.ReasonComplete {
		if err := ExpectSucceeded(dump); err != nil {
			return row, err
		}
		if _, err := b.takeDump(ctx, dump, name+".kdump"); err != nil {
			return row, err
		}
	} else if err := b.expectNoDump(ctx, b.Target); err != nil {
		return row, err
	}
	if err := b.AwaitCleanNode(ctx); err != nil {
		return row, err
	}
	if err := b.ExpectSameTables(ctx, before); err != nil {
		return row, err
	}
	row.TablesEqual = true
	return row, b.Guest.CheckConsole()
}

func (b *Bench) awaitGone(ctx context.Context, name string) error {
	return cluster.Poll(ctx, "the end of the deleted LiveDump "+name, 3*time.Minute, func(ctx context.Context) (bool, string, error) {
		_, err := b.Get(ctx, name)
		if apierrors.IsNotFound(err) {
			return true, "", nil
		}
		return false, "it is still there", err
	})
}

func (b *Bench) killAgent(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	_, err := b.Guest.Run(ctx, "sh", "-c", "kill -KILL $(pidof livedump-agent)")
	return err
}

// deleteAgentPod is what an upgrade of the DaemonSet does to a node.
func (b *Bench) deleteAgentPod(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	var pods corev1.PodList
	if err := b.Client.List(ctx, &pods, client.InNamespace(Namespace), client.MatchingLabels{"app.kubernetes.io/component": "agent"}); err != nil {
		return err
	}
	for i := range pods.Items {
		if err := b.Client.Delete(ctx, &pods.Items[i]); err != nil {
			return err
		}
	}
	if len(pods.Items) == 0 {
		return errors.New("there is no agent's pod")
	}
	return nil
}

func (b *Bench) apiServerAway(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	resume, err := b.Pause("kube-apiserver")
	if err != nil {
		return err
	}
	defer resume()
	select {
	case <-time.After(apiAway):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

func (b *Bench) evictHolder(ctx context.Context, dump *livedumpv1alpha1.LiveDump) error {
	var pods corev1.PodList
	if err := b.Client.List(ctx, &pods, client.InNamespace(Namespace)); err != nil {
		return err
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; metav1.IsControlledBy(pod, dump) {
			return b.Client.Delete(ctx, pod, client.GracePeriodSeconds(1))
		}
	}
	return errors.New("there is no holder")
}

func (b *Bench) cancelDump(ctx context.Context, dump *livedumpv1alpha1.LiveDump) error {
	_, err := b.Kubectl(ctx, nil, "--namespace="+Namespace, "patch", "livedump", dump.Name, "--type=merge", `--patch={"spec":{"desiredState":"Cancel"}}`)
	return err
}

func (b *Bench) deleteDump(ctx context.Context, dump *livedumpv1alpha1.LiveDump) error {
	return b.Client.Delete(ctx, dump)
}
