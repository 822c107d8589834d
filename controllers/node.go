// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"livedump.io/api/v1alpha1"
)

// What the kernel module supports.
const (
	supportedOS           = "linux"
	supportedArchitecture = "amd64"
)

func checkNamespace(o *observation) finding {
	if !o.namespaceAllowed {
		return bad(v1alpha1.ReasonNamespaceNotAllowed, fmt.Sprintf(
			"LiveDumps are not allowed in namespace %s; a dump holds the secrets of the whole node, so namespaces are listed in the chart's value \"namespaces\"", o.dump.Namespace))
	}
	return accepted()
}

// checkNode says whether the node exists and can be dumped. What the node has not told
// about itself yet is not held against it: the agent cannot start there anyway.
func checkNode(o *observation) finding {
	name := o.dump.Spec.NodeName
	if o.node == nil {
		return bad(v1alpha1.ReasonNodeNotFound, fmt.Sprintf("node %s does not exist", name))
	}
	if system := reported(o.node.Status.NodeInfo.OperatingSystem, o.node.Labels[corev1.LabelOSStable]); system != "" && system != supportedOS {
		return bad(v1alpha1.ReasonUnsupportedNode, fmt.Sprintf("node %s runs %s; only %s can be dumped", name, system, supportedOS))
	}
	if arch := reported(o.node.Status.NodeInfo.Architecture, o.node.Labels[corev1.LabelArchStable]); arch != "" && arch != supportedArchitecture {
		return bad(v1alpha1.ReasonUnsupportedNode, fmt.Sprintf("node %s has architecture %s; only %s can be dumped", name, arch, supportedArchitecture))
	}
	return accepted()
}

// reported prefers what the kubelet reports over the label, which anyone may have set.
func reported(info, label string) string {
	if info != "" {
		return strings.ToLower(info)
	}
	return label
}

// rebooted says whether the node runs another boot than the one that was accepted.
func rebooted(o *observation) bool {
	was, is := o.dump.Status.Node.BootID, ""
	if o.node != nil {
		is = o.node.Status.NodeInfo.BootID
	}
	return was != "" && is != "" && was != is
}

// nodeTrouble says why the node is not Ready; "" if it is.
func nodeTrouble(node *corev1.Node) string {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.Status == corev1.ConditionTrue {
				return ""
			}
			return fmt.Sprintf("node %s is not Ready (%s)", node.Name, describe(c.Reason, c.Message))
		}
	}
	return fmt.Sprintf("node %s has not reported that it is Ready", node.Name)
}

// describe joins a reason and a message of which either may be empty.
func describe(reason, message string) string {
	switch {
	case reason == "":
		return message
	case message == "":
		return reason
	}
	return reason + ": " + message
}
