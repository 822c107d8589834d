// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
	applyv1alpha1 "livedump.io/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"livedump.io/internal/session"
	"livedump.io/node-agent/engine"
)

// FieldManager owns the agent's part of the status.
const FieldManager = "livedump-agent"

// reasonLoaded of condition ModuleLoaded, True.
const reasonLoaded = "Loaded"

// maxMessage is the room for a message of a condition, with some left for what may be put before it.
const maxMessage = 4096

// Part is the agent's part of the status. It is always written whole.
type Part struct {
	Name, Namespace string
	UID             string
	// ResourceVersion that the LiveDump must still have; empty: any.
	ResourceVersion string

	// Conditions ModuleLoaded and Captured.
	Conditions []metav1.Condition
	Session    string
	Progress   v1alpha1.Progress
	Result     *v1alpha1.Result
}

// StatusWriter is the edge to the API server.
type StatusWriter interface {
	Write(ctx context.Context, p Part) error
}

// APIStatus writes by server-side apply, so that nothing of the controller's part is touched.
type APIStatus struct{ Client client.Client }

// Write implements StatusWriter.
func (w APIStatus) Write(ctx context.Context, p Part) error {
	status := applyv1alpha1.LiveDumpStatus().WithSession(p.Session)
	for _, c := range p.Conditions {
		status.WithConditions(metav1ac.Condition().WithType(c.Type).WithStatus(c.Status).WithReason(c.Reason).
			WithMessage(c.Message).WithObservedGeneration(c.ObservedGeneration).WithLastTransitionTime(c.LastTransitionTime))
	}
	if g := p.Progress; !g.LastUpdateTime.IsZero() {
		status.WithProgress(applyv1alpha1.Progress().WithPagesTotal(g.PagesTotal).WithPagesWritten(g.PagesWritten).
			WithBytesWritten(g.BytesWritten).WithPercent(g.Percent).WithLastUpdateTime(g.LastUpdateTime))
	}
	if r := p.Result; r != nil {
		result := applyv1alpha1.Result().WithFormat(r.Format).WithSizeBytes(r.SizeBytes).
			WithFreezeMicroseconds(r.FreezeMicroseconds).WithPagesDumped(r.PagesDumped).WithPagesLost(r.PagesLost).
			WithPagesUncovered(r.PagesUncovered).WithFaults(r.Faults).WithDevice(r.Device)
		if r.SHA256 != "" {
			result.WithSHA256(r.SHA256)
		}
		for _, part := range r.Parts {
			result.WithParts(applyv1alpha1.PartResult().WithClaimName(part.ClaimName).WithSizeBytes(part.SizeBytes).
				WithSHA256(part.SHA256).WithDevice(part.Device))
		}
		if r.Encryption != "" {
			result.WithEncryption(r.Encryption)
		}
		if r.Reserve != nil {
			result.WithReserve(applyv1alpha1.ReserveUse().WithPages(r.Reserve.Pages).WithUsedPages(r.Reserve.UsedPages))
		}
		for _, step := range r.Steps {
			result.WithSteps(applyv1alpha1.StepDuration().WithName(step.Name).WithMilliseconds(step.Milliseconds))
		}
		if r.FrozenAt != nil {
			result.WithFrozenAt(*r.FrozenAt)
		}
		for _, c := range r.PagesByClass {
			result.WithPagesByClass(applyv1alpha1.PageClassCount().WithClass(c.Class).WithPages(c.Pages).
				WithDisposition(c.Disposition))
		}
		status.WithResult(result)
	}
	apply := applyv1alpha1.LiveDump(p.Name, p.Namespace).WithStatus(status)
	apply.WithUID(types.UID(p.UID))
	if p.ResourceVersion != "" {
		apply.WithResourceVersion(p.ResourceVersion)
	}
	return w.Client.Status().Apply(ctx, apply, client.FieldOwner(FieldManager), client.ForceOwnership)
}

// newPart begins with the conditions as they are, so that their times of transition are kept.
func newPart(dump *v1alpha1.LiveDump) Part {
	p := Part{Name: dump.Name, Namespace: dump.Namespace, UID: string(dump.UID), Session: dump.Status.Session,
		Progress: dump.Status.Progress}
	for _, t := range []string{v1alpha1.ConditionModuleLoaded, v1alpha1.ConditionCaptured} {
		if c := meta.FindStatusCondition(dump.Status.Conditions, t); c != nil {
			p.Conditions = append(p.Conditions, *c)
		}
	}
	return p
}

// set a condition. The generation is that of the spec which the agent acts on.
func (p *Part) set(now time.Time, generation int64, conditionType string, status metav1.ConditionStatus, reason, message string) {
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "")
	}
	meta.SetStatusCondition(&p.Conditions, metav1.Condition{Type: conditionType, Status: status, Reason: reason,
		Message: message, ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(now)})
}

// resultOf is what the API says of a finished dump, split among claims if there are any.
func resultOf(r *engine.Report, claims []v1alpha1.PersistentVolumeClaimTarget) *v1alpha1.Result {
	result := &v1alpha1.Result{
		Format:             r.Format,
		Encryption:         r.Encryption,
		SizeBytes:          int64(r.SizeBytes),
		SHA256:             r.SHA256,
		FreezeMicroseconds: (r.FreezeNS + 999) / 1000,
		PagesDumped:        int64(r.PagesDumped),
		PagesLost:          int64(r.LostPages),
		PagesUncovered:     int64(r.UncoveredPages),
		Faults:             int64(r.Faults),
		Reserve:            &v1alpha1.ReserveUse{Pages: int64(r.ReservePages), UsedPages: int64(r.ReservePages - min(r.ReserveLow, r.ReservePages))},
		Steps:              stepsOf(r),
		Device:             r.Device,
	}
	for i, part := range r.Parts[:min(len(r.Parts), len(claims))] { // in the order in which they were opened
		result.Parts = append(result.Parts, v1alpha1.PartResult{ClaimName: claims[i].ClaimName, SizeBytes: int64(part.SizeBytes),
			SHA256: part.SHA256, Device: part.Device})
	}
	if r.FrozenAt != nil {
		at := metav1.NewMicroTime(*r.FrozenAt)
		result.FrozenAt = &at
	}
	for c := session.ClassKernel; c < session.NumClasses; c++ {
		disposition := "Excluded"
		if c.Dumped(session.DumpLevel(r.DumpLevel)) {
			disposition = "Dumped"
		}
		result.PagesByClass = append(result.PagesByClass, v1alpha1.PageClassCount{Class: c.String(),
			Pages: int64(r.ClassPages(c)), Disposition: disposition})
	}
	return result
}

// stepsOf are the durations by step; a step that was taken several times has their sum.
func stepsOf(r *engine.Report) []v1alpha1.StepDuration {
	var steps []v1alpha1.StepDuration
	for _, step := range r.Steps {
		took := time.Duration(step.NS).Milliseconds()
		i := slices.IndexFunc(steps, func(s v1alpha1.StepDuration) bool { return string(s.Name) == step.Name })
		if i >= 0 {
			steps[i].Milliseconds += took
			continue
		}
		steps = append(steps, v1alpha1.StepDuration{Name: v1alpha1.Step(step.Name), Milliseconds: took})
	}
	return steps
}

// is says whether a condition has a status.
func (p *Part) is(conditionType string, status metav1.ConditionStatus) bool {
	return meta.IsStatusConditionPresentAndEqual(p.Conditions, conditionType, status)
}

// clone has conditions of its own.
func (p Part) clone() Part {
	p.Conditions = append([]metav1.Condition(nil), p.Conditions...)
	return p
}
