// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"livedump.io/api/v1alpha1"
)

// checkAgent says whether the agent of the node is there.
func checkAgent(o *observation) finding {
	if o.agent != nil && podReady(o.agent) {
		return good(v1alpha1.ReasonAgentReady, fmt.Sprintf("pod %s/%s", o.agent.Namespace, o.agent.Name))
	}
	var message string
	if o.agent == nil {
		message = fmt.Sprintf("waiting for the agent: no pod of its DaemonSet (namespace %s) on node %s yet", o.agentNamespace, o.dump.Spec.NodeName)
	} else {
		message = fmt.Sprintf("waiting for the agent: pod %s/%s is %s", o.agent.Namespace, o.agent.Name, podTrouble(o.agent))
	}
	if o.node != nil {
		if trouble := nodeTrouble(o.node); trouble != "" {
			message += "; " + trouble
		}
	}
	return waiting(v1alpha1.ReasonPending, message)
}

func podReady(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func podEnded(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// podTrouble says in the words of scheduler and kubelet why the pod does not run.
func podTrouble(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return "terminating"
	}
	if podEnded(pod) {
		return describe(string(pod.Status.Phase), describe(pod.Status.Reason, pod.Status.Message))
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "not scheduled (" + describe(c.Reason, c.Message) + ")"
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "" {
			return "waiting (" + describe(w.Reason, w.Message) + ")"
		}
		if t := c.State.Terminated; t != nil {
			return fmt.Sprintf("restarting (exit code %d, %s)", t.ExitCode, t.Reason)
		}
	}
	if pod.Status.Phase == corev1.PodRunning {
		return "running but not ready"
	}
	return "pending"
}
