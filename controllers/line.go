// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"slices"

	"livedump.io/api/v1alpha1"
)

// exactPlace is up to where a place in the line is told as it is. Further back it is told anew only when it has
// halved: with thousands in line, every end would otherwise be a write for each of them.
const exactPlace = 10

// checkLine lets one LiveDump of a node run at a time, in the order of creation: the kernel
// module has one session, and two dumps would share the reserve's memory. On all nodes together no
// more run than Config.MaxConcurrent.
func checkLine(o *observation) finding {
	if first, place := nodeLine(o); first != nil {
		return inPlace(o, place, fmt.Sprintf("waiting for LiveDump %s, which has node %s; place %d in line for the node",
			reference(first), o.dump.Spec.NodeName, place))
	}
	if o.maxConcurrent > 0 && o.dump.Status.StartTime == nil {
		if running, place := clusterLine(o); place > o.maxConcurrent-running {
			// Those who have a free place before this one will take it in a moment.
			place -= max(0, o.maxConcurrent-running)
			return inPlace(o, place, fmt.Sprintf("no more than %d LiveDumps may run at a time in this cluster; place %d in line",
				o.maxConcurrent, place))
		}
	}
	return accepted()
}

// inPlace is the finding of one that waits, told anew if the place changed by enough. The message may hold nothing that
// changes while the place does not, such as the length of the line: a glance does not write for a message alone.
func inPlace(o *observation, place int, message string) finding {
	f := waiting(v1alpha1.ReasonWaitingInLine, message)
	f.place = int32(place)
	was := o.dump.Status.PlaceInLine
	if inLine(o.dump) && f.place > exactPlace && f.place <= was && f.place > was/2 {
		f = kept(o.dump, v1alpha1.ConditionAccepted)
		f.place = was
	}
	return f
}

// nodeLine is the LiveDump that has the node or is the next to have it, nil if that is this one; and the place of
// this one among those that wait for the node.
func nodeLine(o *observation) (first *v1alpha1.LiveDump, place int) {
	place = 1
	for _, other := range o.others {
		if other.Spec.NodeName != o.dump.Spec.NodeName || other.Ended() {
			continue
		}
		before := comesBefore(other, o.dump)
		if before && (first == nil || comesBefore(other, first)) {
			first = other
		}
		if before && other.Status.StartTime == nil {
			place++
		}
	}
	return first, place
}

// clusterLine is how many LiveDumps run, and the place of this one, which is the next of its node, among the next of
// all nodes whose turn could be now.
func clusterLine(o *observation) (running, place int) {
	heads, running := next(append([]*v1alpha1.LiveDump{o.dump}, o.others...))
	return running, slices.Index(heads, o.dump) + 1
}

// next are the LiveDumps that could begin if only their node counted, the one who waits longest first, and
// how many run already.
func next(dumps []*v1alpha1.LiveDump) (heads []*v1alpha1.LiveDump, running int) {
	first := map[string]*v1alpha1.LiveDump{}
	for _, dump := range dumps {
		if dump.Ended() {
			continue
		}
		if dump.Status.StartTime != nil {
			running++
		}
		if has := first[dump.Spec.NodeName]; has == nil || comesBefore(dump, has) {
			first[dump.Spec.NodeName] = dump
		}
	}
	for _, dump := range first {
		if dump.Status.StartTime == nil {
			heads = append(heads, dump)
		}
	}
	slices.SortFunc(heads, func(a, b *v1alpha1.LiveDump) int {
		if comesBefore(a, b) {
			return -1
		}
		return 1
	})
	return heads, running
}

// inLine says whether the LiveDump was told to wait for others.
func inLine(dump *v1alpha1.LiveDump) bool {
	c := condition(dump, v1alpha1.ConditionAccepted)
	return dump.Status.StartTime == nil && c != nil && c.Reason == v1alpha1.ReasonWaitingInLine
}

// comesBefore orders LiveDumps that have not ended: those that run first, then by age.
// It is a total order, so of any two exactly one yields.
func comesBefore(a, b *v1alpha1.LiveDump) bool {
	if runs := a.Status.StartTime != nil; runs != (b.Status.StartTime != nil) {
		return runs
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.UID < b.UID
}
