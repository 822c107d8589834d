// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
)

const (
	// safetyLook is the longest time without a look at a LiveDump that has not ended, for
	// what no watch reports (another pod that takes the claim, say).
	safetyLook = 10 * time.Second

	// lineLook is the same for one that waits in line. Whoever ends wakes the next, so this is only for its
	// place. Its target is looked at after lineFirstLook, for when thousands are created at once those whose
	// turn it is come first, and then every lineSafetyLook.
	lineLook       = 30 * time.Second
	lineFirstLook  = time.Minute
	lineSafetyLook = 5 * time.Minute

	// agentGrace is how long after the deadline an agent at work may take to report by
	// itself; its report says more than the controller can know.
	agentGrace = 30 * time.Second

	// deletionGrace is how long the deletion of a LiveDump waits for the agent to thaw.
	deletionGrace = 60 * time.Second
)

// holderLag is how long a holder that was created may take to be seen in the cache.
const holderLag = 3 * time.Second

// want is what is to be done about a thing that may or may not exist.
type want int

const (
	leave want = iota
	ensure
	remove
)

// decision is the next step for one LiveDump.
type decision struct {
	finalizer want
	// cancel turns the deletion of a LiveDump into a cancellation, which the agent sees.
	cancel bool
	// status as it is to be, the agent's part unchanged.
	status v1alpha1.LiveDumpStatus
	holder want
	// expire deletes the LiveDump.
	expire bool
	// lookAgain after this time, even if nothing happens.
	lookAgain time.Duration
}

// decide is the whole state machine. It depends on nothing but what was observed.
func decide(o *observation) decision {
	if o.dump.Ended() {
		return cleanUp(o)
	}
	found := examine(o)
	if end := findEnd(o, found); end != nil {
		// Only the status: what it holds on to is given back once the end is on record.
		return decision{status: endedStatus(o, found, *end), lookAgain: conflictRetry}
	}
	d := decision{status: runningStatus(o, found), lookAgain: safetyLook}
	if found.accepted.state == fine {
		d.finalizer = ensure // before there is anything to clean up
	}
	if deleting(o.dump) {
		// Kubernetes takes no new finalizers now, and findEnd is waiting for the agent.
		d.finalizer = leave
		d.cancel = o.dump.Spec.DesiredState != v1alpha1.DesiredStateCancel
		d.lookAgain = time.Second
	}
	if found.accepted.state == fine && !deleting(o.dump) {
		d.holder = holderStep(o)
	}
	if at := o.dump.Status.StartTime; d.holder == ensure && !o.whole && at != nil && o.now.Sub(at.Time) < holderLag {
		// It was asked for a moment ago, and the cache does not show it yet.
		d.holder, d.lookAgain = leave, holderLag
	}
	if !o.whole && !o.dump.Begun() && sameButMessages(o.dump.Status, d.status) {
		// Pods on their way say something else every moment. The next look tells what lasts.
		d.status = o.dump.Status
	}
	if d.waitsInLine() {
		d.lookAgain = lineLook
	}
	d.lookAgain = min(d.lookAgain, deadline(o, found).Sub(o.now))
	return d
}

func (d decision) waitsInLine() bool {
	c := meta.FindStatusCondition(d.status.Conditions, v1alpha1.ConditionAccepted)
	return d.status.StartTime == nil && c != nil && c.Reason == v1alpha1.ReasonWaitingInLine
}

// weighs says whether the decision, made at a glance, is one that takes a look at all there is.
func (d decision) weighs(o *observation) bool {
	if o.whole || o.dump.Ended() || reportedEnd(o) != nil {
		return false // there is nothing more to see, or the agent's word is all that counts
	}
	was, is := o.dump.Status, d.status
	readyBy := func(s v1alpha1.LiveDumpStatus) string {
		if c := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionTargetReady); c != nil && c.Status == metav1.ConditionTrue {
			return c.Reason
		}
		return ""
	}
	return is.CompletionTime != nil || is.StartTime != nil && was.StartTime == nil || d.holder == ensure ||
		readyBy(is) != "" && readyBy(is) != readyBy(was)
}

// findings are the results of the checks, one for each condition of the controller's.
type findings struct {
	accepted finding
	target   finding
	agent    finding
}

// examine runs the checks. A check that comes after one that failed is not run.
func examine(o *observation) findings {
	unchecked := findings{
		accepted: waiting(v1alpha1.ReasonPending, "not checked yet"),
		target:   waiting(v1alpha1.ReasonPending, "not checked yet"),
		agent:    waiting(v1alpha1.ReasonPending, "not checked yet"),
	}
	if o.dump.Begun() {
		// The agent has the device open and does not need the holder any more. What could
		// still go wrong with the target shows as an I/O error.
		return findings{accepted: accepted(), target: kept(o.dump, v1alpha1.ConditionTargetReady), agent: checkAgent(o)}
	}
	f := unchecked
	if o.dump.Canceled() {
		// It is not to begin, so nothing needs to be checked, and nothing is said of what was not.
		return keptFindings(o.dump)
	}
	if f.accepted = checkNamespace(o); f.accepted.state == failed {
		return f
	}
	if f.accepted = checkNode(o); f.accepted.state == failed {
		return f
	}
	if !o.whole {
		return examineAtAGlance(o, unchecked)
	}
	if f.target = checkTarget(o); f.target.state == failed {
		f.accepted = unchecked.accepted
		return f
	}
	if f.accepted = checkLine(o); f.accepted.state != fine {
		f.target, f.agent = unchecked.target, unchecked.agent
		return f
	}
	if f.target.state == fine {
		f.target = checkAttachment(o)
	} else if holder := checkHolder(o); holder.state == pending {
		// While a claim is unbound, the holder's troubles are the reason.
		f.target.message += "; " + holder.message
	}
	f.agent = checkAgent(o)
	return f
}

// keptFindings are the conditions as they stand.
func keptFindings(dump *v1alpha1.LiveDump) findings {
	return findings{accepted: kept(dump, v1alpha1.ConditionAccepted), target: kept(dump, v1alpha1.ConditionTargetReady),
		agent: kept(dump, v1alpha1.ConditionAgentReady)}
}

// examineAtAGlance leaves the claims as the last look found them. What it says of namespace and node stands already.
func examineAtAGlance(o *observation, f findings) findings {
	f.accepted = accepted()
	if o.dump.Status.StartTime == nil {
		if f.target = checkRival(o); f.target.state != failed {
			f.accepted = checkLine(o)
		}
		return f
	}
	f.agent = checkAgent(o)
	f.target = kept(o.dump, v1alpha1.ConditionTargetReady)
	if attached := checkAttachment(o); f.target.reason != v1alpha1.ReasonTargetNotBound || attached.state != pending {
		f.target = attached
	}
	return f
}

// cleanUp is what is left to do for a LiveDump that has ended. Its status does not change any more.
func cleanUp(o *observation) decision {
	d := decision{status: o.dump.Status}
	if o.owned() && o.holder.DeletionTimestamp == nil {
		d.holder = remove
	}
	// A holder on a dead node terminates forever, so its deletion is only asked for, not awaited.
	d.finalizer = remove
	ttl := o.dump.Spec.TTLSecondsAfterFinished
	if ttl == nil || deleting(o.dump) || o.dump.Status.CompletionTime == nil {
		return d
	}
	left := o.dump.Status.CompletionTime.Add(time.Duration(*ttl) * time.Second).Sub(o.now)
	if d.expire = left <= 0; !d.expire {
		d.lookAgain = left
	}
	return d
}

func deleting(dump *v1alpha1.LiveDump) bool { return dump.DeletionTimestamp != nil }

func reference(dump *v1alpha1.LiveDump) string {
	return fmt.Sprintf("%s/%s", dump.Namespace, dump.Name)
}
