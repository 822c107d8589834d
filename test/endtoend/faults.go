// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/test/cluster"
	"livedump.io/test/faultrow"
	"livedump.io/test/trial"
)

// fault is something that happens to the cluster while a dump is made; if nothing else is said, while pages are being written.
type fault struct {
	name     string
	expected string // reason of Succeeded, or gone
	spec     func(*livedumpv1alpha1.LiveDumpSpec)
	// prepare, if not nil, is done before there is a LiveDump.
	prepare func(b *Bench, ctx context.Context) error
	// early: happen does not wait for pages being written.
	early bool
	// mapped: the target is the device-mapper device that prepare makes.
	mapped bool
	happen func(b *Bench, ctx context.Context, dump *livedumpv1alpha1.LiveDump) error
	// look, if not nil, looks at more when the LiveDump has ended.
	look func(b *Bench, ctx context.Context, ended *livedumpv1alpha1.LiveDump) error
	// putBack, if not nil, undoes what happen has changed of the cluster, however far it and the row have come.
	putBack func(b *Bench, ctx context.Context) error
	// reboots: the node is another boot afterwards, whose page tables are looked at from then on.
	reboots bool
	// takenOver: another agent has to have gone on with the dump.
	takenOver bool
}

const (
	apiAway = 60 * time.Second
	gone    = "deleted"
	frozen  = "frozen" // the module's word
	// shortTimeout is over before a dump without compression is written.
	shortTimeout = 60
	secondClaim  = "second-target"
	secondDump   = "fault-second"
)

var clusterFaults = append(killedAtEachStep(), []fault{
	{name: "cluster: agent killed", expected: livedumpv1alpha1.ReasonComplete, happen: (*Bench).killAgent, takenOver: true},
	{name: "cluster: agent's image upgraded, pod deleted", expected: livedumpv1alpha1.ReasonComplete,
		spec: slowly("1536Ki"), happen: (*Bench).upgradeAndDelete, putBack: (*Bench).downgrade, takenOver: true},
	{name: "cluster: agent's image upgraded by a rollout", expected: livedumpv1alpha1.ReasonComplete,
		spec: slowly("1536Ki"), happen: (*Bench).rollOut, putBack: (*Bench).downgrade, takenOver: true},
	{name: "cluster: controller killed", expected: livedumpv1alpha1.ReasonComplete, happen: (*Bench).killController},
	{name: "cluster: API server away for 60 s", expected: livedumpv1alpha1.ReasonComplete, spec: slowly("1Mi"), happen: (*Bench).apiServerAway},
	{name: "cluster: API server away, and the dump ends", expected: livedumpv1alpha1.ReasonComplete, spec: slowly("8Mi"), happen: (*Bench).apiServerAwayAtTheEnd},
	{name: "cluster: holder evicted", expected: livedumpv1alpha1.ReasonComplete, happen: (*Bench).evictHolder},
	{name: "cluster: another LiveDump for the node", expected: livedumpv1alpha1.ReasonComplete,
		happen: (*Bench).anotherDump, look: (*Bench).otherDumpWaited},
	{name: "cluster: node's clock set back an hour", expected: livedumpv1alpha1.ReasonComplete,
		happen: (*Bench).setClockBack, putBack: (*Bench).setClockRight},
	{name: "cluster: I/O error in the middle", expected: livedumpv1alpha1.ReasonIOError, spec: slowly("8Mi"), mapped: true,
		prepare: (*Bench).mapTarget, happen: breakTarget("error"), putBack: (*Bench).unmapTarget},
	{name: "cluster: target read-only in the middle", expected: livedumpv1alpha1.ReasonIOError, spec: slowly("8Mi"), mapped: true,
		prepare: (*Bench).mapTarget, happen: breakTarget("flakey " + mappedDisk + " 0 0 3600 1 error_writes"), putBack: (*Bench).unmapTarget},
	{name: "cluster: memory pressure", expected: livedumpv1alpha1.ReasonComplete, prepare: (*Bench).fillMemory,
		happen: (*Bench).nothing, putBack: (*Bench).emptyMemory},
	{name: "cluster: node reset", expected: livedumpv1alpha1.ReasonNodeRebooted, happen: (*Bench).resetNode, reboots: true},
	{name: "cluster: time is up", expected: livedumpv1alpha1.ReasonDeadlineExceeded, spec: shortTime, happen: (*Bench).nothing},
	{name: "cluster: canceled", expected: livedumpv1alpha1.ReasonCanceled, spec: slowly("2Mi"), happen: (*Bench).cancelDump},
	{name: "cluster: LiveDump deleted", expected: gone, spec: slowly("2Mi"), happen: (*Bench).deleteDump},
}...)

// slowly makes writing take a minute and more, for what has to happen meanwhile.
func slowly(bandwidth string) func(*livedumpv1alpha1.LiveDumpSpec) {
	return func(spec *livedumpv1alpha1.LiveDumpSpec) {
		limit := resource.MustParse(bandwidth)
		spec.Limits = &livedumpv1alpha1.Limits{Bandwidth: &limit}
		spec.Compression = livedumpv1alpha1.CompressionNone
	}
}

func shortTime(spec *livedumpv1alpha1.LiveDumpSpec) {
	slowly("1Mi")(spec)
	spec.TimeoutSeconds = shortTimeout
}

// faultTable lets one after the other happen in the middle of a dump. The next LiveDump shows that the one before
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
		if err == nil {
			continue
		}
		problems = append(problems, err)
		if err := b.settle(ctx); err != nil {
			problems = append(problems, fmt.Errorf("the rows after it were not run: %w", err))
			break
		}
	}
	if len(rows) == 0 {
		return fmt.Errorf("no fault has a name that matches %q", b.Options.Faults)
	}
	faultrow.Print(rows)
	return errors.Join(append(problems, trial.WriteJSON(filepath.Join(b.Options.Out, "faults.json"), rows))...)
}

// settle ends what a row that failed has left, for the next row's result is to be its own.
func (b *Bench) settle(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var dumps livedumpv1alpha1.LiveDumpList
	if err := b.Client.List(ctx, &dumps, client.InNamespace(Namespace)); err != nil {
		return err
	}
	for i := range dumps.Items {
		if err := client.IgnoreNotFound(b.Client.Delete(ctx, &dumps.Items[i])); err != nil {
			return err
		}
		if err := b.awaitGone(ctx, dumps.Items[i].Name); err != nil {
			return err
		}
	}
	return b.AwaitCleanNode(ctx)
}

func (b *Bench) fault(ctx context.Context, f fault, name string) (row faultrow.Row, err error) {
	row = faultrow.Row{Fault: f.name, Expected: f.expected, Header: "?"}
	defer func() {
		if err != nil {
			row.Explain(err)
			err = fmt.Errorf("%s: %w", f.name, err)
		}
		row.OK = err == nil
	}()
	if f.putBack != nil {
		defer func() {
			if perr := f.putBack(b, ctx); perr != nil {
				err = errors.Join(err, fmt.Errorf("put back: %w", perr))
			}
		}()
	}
	before, err := b.PageTables(ctx)
	if err != nil {
		return row, err
	}
	if f.prepare != nil {
		if err := f.prepare(b, ctx); err != nil {
			return row, err
		}
	}
	claim, target := ClaimName, b.Target
	if f.mapped {
		claim, target = mappedClaim, b.SecondTarget
	}
	if err := b.createWith(ctx, name, NodeName, claim, f.spec); err != nil {
		return row, err
	}
	dump, err := b.Get(ctx, name)
	if err == nil && !f.early {
		dump, err = b.awaitPages(ctx, name)
	}
	if err != nil {
		return row, err
	}
	if err := f.happen(b, ctx, dump); err != nil {
		return row, err
	}
	if f.reboots {
		if before, err = b.PageTables(ctx); err != nil {
			return row, err
		}
	}
	if dump, row.Seen, err = b.outcome(ctx, f, name); err != nil {
		return row, err
	}
	if row.Header, err = faultrow.Header(target); err != nil {
		return row, err
	}
	if row.Seen != f.expected {
		return row, errors.New(summary(dump))
	}
	if row.Seen == livedumpv1alpha1.ReasonComplete {
		err = b.expectWhole(ctx, dump, f.takenOver)
	} else {
		err = b.expectNoDump(ctx, target)
	}
	if err != nil {
		return row, err
	}
	if f.look != nil {
		if err := f.look(b, ctx, dump); err != nil {
			return row, err
		}
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

// awaitPages returns when pages of a LiveDump are being written.
func (b *Bench) awaitPages(ctx context.Context, name string) (dump *livedumpv1alpha1.LiveDump, err error) {
	err = b.Follow(ctx, name, "pages being written", func(d *livedumpv1alpha1.LiveDump) (bool, error) {
		dump = d
		if c := apimeta.FindStatusCondition(d.Status.Conditions, livedumpv1alpha1.ConditionCaptured); c != nil && c.Status != metav1.ConditionUnknown {
			return false, fmt.Errorf("the dump was over before anything could happen: %s", summary(d))
		}
		return d.Status.Progress.PagesWritten > 0, nil
	})
	return dump, err
}

// outcome waits for the end of a LiveDump and says how it ended.
func (b *Bench) outcome(ctx context.Context, f fault, name string) (*livedumpv1alpha1.LiveDump, string, error) {
	if f.expected == gone {
		if err := b.awaitGone(ctx, name); err != nil {
			return nil, "", err
		}
		return nil, gone, nil
	}
	dump, err := b.AwaitEnd(ctx, name)
	if err != nil {
		return nil, "", err
	}
	return dump, apimeta.FindStatusCondition(dump.Status.Conditions, livedumpv1alpha1.ConditionSucceeded).Reason, nil
}

// expectWhole is an error unless what is on the target is the dump that its LiveDump says, and another agent has gone on with it
// if one was to.
func (b *Bench) expectWhole(ctx context.Context, dump *livedumpv1alpha1.LiveDump, takenOver bool) error {
	if err := ExpectSucceeded(dump); err != nil {
		return err
	}
	if _, err := b.takeDump(ctx, dump, b.Target, dump.Name+".kdump"); err != nil {
		return err
	}
	captured := apimeta.FindStatusCondition(dump.Status.Conditions, livedumpv1alpha1.ConditionCaptured)
	if takenOver != strings.Contains(captured.Message, "taken over") {
		return fmt.Errorf("taken over by another agent: want %v, but: %s", takenOver, captured.Message)
	}
	return nil
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

func (b *Bench) agentPod(ctx context.Context) (*corev1.Pod, error) {
	var pods corev1.PodList
	if err := b.Client.List(ctx, &pods, client.InNamespace(Namespace), client.MatchingLabels{"app.kubernetes.io/component": "agent"}); err != nil {
		return nil, err
	}
	for i := range pods.Items {
		if pods.Items[i].DeletionTimestamp == nil {
			return &pods.Items[i], nil
		}
	}
	return nil, errors.New("there is no agent's pod")
}

// upgradeAndDelete upgrades the release, which leaves the agent alone (the chart's strategy is OnDelete), and then deletes the agent's
// pod as an administrator would who does not want to wait. The agent has less than its grace period from then on.
func (b *Bench) upgradeAndDelete(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	old, err := b.agentPod(ctx)
	if err != nil {
		return err
	}
	if err := b.release(ctx, "upgrade", nextTag); err != nil {
		return err
	}
	now, err := b.agentPod(ctx)
	if err != nil {
		return err
	}
	if now.UID != old.UID {
		return errors.New("the upgrade replaced the agent's pod, though the chart's strategy is OnDelete")
	}
	if err := b.stillFrozen(ctx); err != nil {
		return err
	}
	b.Step("  upgraded; deleting the agent's pod")
	if err := b.Client.Delete(ctx, old); err != nil {
		return err
	}
	return b.awaitAgentOf(ctx, nextTag)
}

// rollOut upgrades the release with the other strategy, by which the DaemonSet's controller replaces the agent's pod itself.
func (b *Bench) rollOut(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	if err := b.release(ctx, "upgrade", nextTag, "--set=agent.updateStrategy.type=RollingUpdate"); err != nil {
		return err
	}
	b.Step("  upgraded; the DaemonSet rolls out")
	return b.awaitAgentOf(ctx, nextTag)
}

// awaitAgentOf returns when the node's agent has the image of a tag.
func (b *Bench) awaitAgentOf(ctx context.Context, tag string) error {
	return cluster.Poll(ctx, "an agent of the image "+tag, 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		pod, err := b.agentPod(ctx)
		if err != nil {
			return false, err.Error(), nil
		}
		image := pod.Spec.Containers[0].Image
		return strings.HasSuffix(image, ":"+tag) && pod.Status.Phase == corev1.PodRunning, fmt.Sprintf("pod %s of %s is %s", pod.Name, image, pod.Status.Phase), nil
	})
}

// downgrade puts the release back to the agent's first image, and its arguments and strategy to the chart's own.
func (b *Bench) downgrade(ctx context.Context) error { return b.release(ctx, "upgrade", imageTag) }

// memoryState is what the node's module says of memory, if there is one.
func (b *Bench) memoryState(ctx context.Context) (string, error) {
	out, err := b.Guest.Run(ctx, "sh", "-c", "cat /sys/class/misc/livedump/state || ! grep '^livedump ' /proc/modules")
	if err != nil {
		return "", err
	}
	if state := strings.TrimSpace(out.Stdout); state != "" {
		return state, nil
	}
	return "no module", nil
}

// stillFrozen is an error if the dump is over, so that what happens would happen to none.
func (b *Bench) stillFrozen(ctx context.Context) error {
	state, err := b.memoryState(ctx)
	if err == nil && state != frozen {
		err = fmt.Errorf("memory is not frozen any more (%s)", state)
	}
	return err
}

func (b *Bench) killController(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	var pods corev1.PodList
	if err := b.Client.List(ctx, &pods, client.InNamespace(Namespace), client.MatchingLabels{"app.kubernetes.io/component": "controller"}); err != nil {
		return err
	}
	if len(pods.Items) != 1 {
		return fmt.Errorf("%d pods of the controller", len(pods.Items))
	}
	return b.Client.Delete(ctx, &pods.Items[0], client.GracePeriodSeconds(0))
}

// apiServerAway stops the API server for a minute, in which the dump goes on and does not end.
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
	return b.stillFrozen(ctx)
}

// apiServerAwayAtTheEnd stops the API server until memory is not frozen any more: nobody can be told then how the dump ended.
func (b *Bench) apiServerAwayAtTheEnd(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	if err := b.stillFrozen(ctx); err != nil {
		return err
	}
	resume, err := b.Pause("kube-apiserver")
	if err != nil {
		return err
	}
	defer resume()
	return cluster.Poll(ctx, "the thaw", dumpWithin, func(ctx context.Context) (bool, string, error) {
		state, err := b.memoryState(ctx)
		return err == nil && state != frozen, state, err
	})
}

func (b *Bench) evictHolder(ctx context.Context, dump *livedumpv1alpha1.LiveDump) error {
	var pods corev1.PodList
	if err := b.Client.List(ctx, &pods, client.InNamespace(Namespace)); err != nil {
		return err
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; metav1.IsControlledBy(pod, dump) {
			return b.Client.SubResource("eviction").Create(ctx, pod, &policyv1.Eviction{})
		}
	}
	return errors.New("there is no holder")
}

// secondDisk is a volume and a claim of the node's second disk.
func secondDisk() []client.Object {
	size := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(secondTargetMiB<<20, resource.BinarySI)}
	return []client.Object{localVolume("node-1-second-disk", "/dev/vdd", size, secondClaim), blockClaim(secondClaim, "node-1-second-disk", size)}
}

// anotherDump creates a LiveDump of the same node, with a target of its own.
func (b *Bench) anotherDump(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	for _, object := range secondDisk() {
		if err := client.IgnoreAlreadyExists(b.Client.Create(ctx, object)); err != nil {
			return err
		}
	}
	if err := b.create(ctx, secondDump, NodeName, secondClaim); err != nil {
		return err
	}
	return b.Follow(ctx, secondDump, "its place in line", func(d *livedumpv1alpha1.LiveDump) (bool, error) {
		if d.Status.StartTime != nil {
			return false, fmt.Errorf("two LiveDumps of the node run: %s", summary(d))
		}
		c := apimeta.FindStatusCondition(d.Status.Conditions, livedumpv1alpha1.ConditionAccepted)
		return c != nil && c.Reason == livedumpv1alpha1.ReasonWaitingInLine && d.Status.PlaceInLine == 1, nil
	})
}

// otherDumpWaited: the other LiveDump began after the end of this one, and was carried out too.
func (b *Bench) otherDumpWaited(ctx context.Context, first *livedumpv1alpha1.LiveDump) error {
	second, err := b.AwaitSuccess(ctx, secondDump)
	if err != nil {
		return err
	}
	if second.Status.StartTime.Before(first.Status.CompletionTime) {
		return fmt.Errorf("LiveDump %s began at %s, before the end of %s at %s", second.Name, second.Status.StartTime, first.Name, first.Status.CompletionTime)
	}
	_, err = b.takeDump(ctx, second, b.SecondTarget, secondDump+".kdump")
	return err
}

func (b *Bench) setClockBack(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	_, err := b.Guest.Run(ctx, "sh", "-ec", `date -s "@$(( $(date +%s) - 3600 ))"`)
	return err
}

// setClockRight sets the node's clock to this machine's.
func (b *Bench) setClockRight(ctx context.Context) error {
	_, err := b.Guest.Run(ctx, "date", "-s", fmt.Sprintf("@%d", time.Now().Unix()))
	return err
}

func (b *Bench) resetNode(ctx context.Context, _ *livedumpv1alpha1.LiveDump) error {
	if err := b.stillFrozen(ctx); err != nil {
		return err
	}
	b.Step("  resetting the node")
	return b.ResetNode(ctx, filepath.Join(b.Options.Out, "guest-after-reset.log"))
}

func (b *Bench) nothing(context.Context, *livedumpv1alpha1.LiveDump) error { return nil }

func (b *Bench) cancelDump(ctx context.Context, dump *livedumpv1alpha1.LiveDump) error {
	_, err := b.Kubectl(ctx, nil, "--namespace="+Namespace, "patch", "livedump", dump.Name, "--type=merge", `--patch={"spec":{"desiredState":"Cancel"}}`)
	return err
}

func (b *Bench) deleteDump(ctx context.Context, dump *livedumpv1alpha1.LiveDump) error {
	return b.Client.Delete(ctx, dump)
}
