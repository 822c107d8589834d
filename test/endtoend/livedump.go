// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/test/cluster"
)

// dumpWithin is how long a dump may take here: emulated, and beside other work.
const dumpWithin = 15 * time.Minute

// Get reads a LiveDump of the bench's namespace.
func (b *Bench) Get(ctx context.Context, name string) (*livedumpv1alpha1.LiveDump, error) {
	var dump livedumpv1alpha1.LiveDump
	err := b.Client.Get(ctx, types.NamespacedName{Namespace: Namespace, Name: name}, &dump)
	if err != nil {
		return nil, fmt.Errorf("LiveDump %s: %w", name, err)
	}
	return &dump, nil
}

// AwaitSuccess is AwaitEnd for a LiveDump that must succeed.
func (b *Bench) AwaitSuccess(ctx context.Context, name string) (*livedumpv1alpha1.LiveDump, error) {
	dump, err := b.AwaitEnd(ctx, name)
	if err != nil {
		return nil, err
	}
	return dump, ExpectSucceeded(dump)
}

// AwaitEnd follows a LiveDump, printing what changes, until its condition
// Succeeded is True or False.
func (b *Bench) AwaitEnd(ctx context.Context, name string) (*livedumpv1alpha1.LiveDump, error) {
	var ended *livedumpv1alpha1.LiveDump
	err := b.Follow(ctx, name, "its end", func(dump *livedumpv1alpha1.LiveDump) (bool, error) {
		succeeded := apimeta.FindStatusCondition(dump.Status.Conditions, livedumpv1alpha1.ConditionSucceeded)
		if succeeded == nil || succeeded.Status == metav1.ConditionUnknown {
			return false, nil
		}
		ended = dump
		return true, nil
	})
	return ended, err
}

// Follow polls a LiveDump, printing what changes, until the function says that
// what it looks for is there.
func (b *Bench) Follow(ctx context.Context, name, what string, there func(*livedumpv1alpha1.LiveDump) (bool, error)) error {
	shown, percent := "", int32(0)
	return cluster.Poll(ctx, "LiveDump "+name+": "+what, dumpWithin, func(ctx context.Context) (bool, string, error) {
		dump, err := b.Get(ctx, name)
		if err != nil {
			return false, "", err
		}
		now := summary(dump)
		if p := dump.Status.Progress.Percent; now != shown || p >= percent+10 {
			if shown, percent = now, p; p > 0 && dump.Status.Result == nil {
				b.Step("  %s: %s (%d %%)", name, now, p)
			} else {
				b.Step("  %s: %s", name, now)
			}
		}
		ok, err := there(dump)
		if err != nil {
			return false, "", cluster.Final{Err: err}
		}
		return ok, now, nil
	})
}

// summary is what to know of a LiveDump in a line: its end, what the agent is
// doing, or else the first condition that is not True.
func summary(dump *livedumpv1alpha1.LiveDump) string {
	line := "accepted by nobody yet"
	for _, kind := range []string{
		livedumpv1alpha1.ConditionSucceeded, livedumpv1alpha1.ConditionCaptured, livedumpv1alpha1.ConditionModuleLoaded,
		livedumpv1alpha1.ConditionAgentReady, livedumpv1alpha1.ConditionTargetReady, livedumpv1alpha1.ConditionAccepted,
	} {
		c := apimeta.FindStatusCondition(dump.Status.Conditions, kind)
		if c == nil {
			continue
		}
		terminal := kind == livedumpv1alpha1.ConditionSucceeded && c.Status != metav1.ConditionUnknown
		if terminal || c.Status != metav1.ConditionTrue || line == "accepted by nobody yet" {
			line = fmt.Sprintf("%s=%s %s: %s", kind, c.Status, c.Reason, c.Message)
		}
		atWork := kind == livedumpv1alpha1.ConditionCaptured && c.Reason == livedumpv1alpha1.ReasonRunning
		if terminal || atWork {
			break
		}
	}
	return line
}

// ExpectSucceeded is an error unless the dump succeeded and says all that it should of its result.
func ExpectSucceeded(dump *livedumpv1alpha1.LiveDump) error {
	c := apimeta.FindStatusCondition(dump.Status.Conditions, livedumpv1alpha1.ConditionSucceeded)
	if c == nil || c.Status != metav1.ConditionTrue {
		return fmt.Errorf("LiveDump %s did not succeed: %s", dump.Name, summary(dump))
	}
	r := dump.Status.Result
	var errs []error
	expect := func(holds bool, what string) {
		if !holds {
			errs = append(errs, fmt.Errorf("LiveDump %s succeeded, but %s", dump.Name, what))
		}
	}
	if r == nil {
		return fmt.Errorf("LiveDump %s succeeded without a result", dump.Name)
	}
	expect(c.Reason == livedumpv1alpha1.ReasonComplete, "with the reason "+c.Reason)
	expect(r.SizeBytes > 0, "its result has no size")
	if split := dump.Spec.Target.Split(); split {
		expect(len(r.Parts) == len(dump.Spec.Target.PersistentVolumeClaims), fmt.Sprintf("its result has %d parts", len(r.Parts)))
		for _, p := range r.Parts {
			expect(p.SizeBytes > 0 && len(p.SHA256) == 64, "the part on claim "+p.ClaimName+" has no size or no SHA-256")
		}
	} else {
		expect(len(r.SHA256) == 64, "its result has no SHA-256")
	}
	expect(r.FreezeMicroseconds > 0, "its result has no freeze time")
	expect(r.PagesDumped > 0, "its result has no pages")
	expect(r.PagesLost == 0, fmt.Sprintf("%d pages were lost in a Strict dump", r.PagesLost))
	expect(len(r.PagesByClass) > 0, "its result has no pages by class")
	expect(dump.Status.CompletionTime != nil && dump.Status.StartTime != nil, "it has no start or completion time")
	return errors.Join(errs...)
}
