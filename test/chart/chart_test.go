// SPDX-License-Identifier: Apache-2.0

// Package chart checks what the chart renders. That the API server takes it is checked
// in test/envtest.
package chart

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"

	"livedump.io/controllers"
	"livedump.io/internal/fetch"
)

// rendered are the objects of a release, by kind and name.
type rendered map[string]*unstructured.Unstructured

// template runs helm as a user would.
func template(t *testing.T, args ...string) (rendered, error) {
	t.Helper()
	helm := os.Getenv("HELM")
	if helm == "" {
		t.Skip("HELM is not set to the helm binary; make test-chart does")
	}
	command := exec.Command(helm, append([]string{"template", "livedump", filepath.Join("..", "..", "charts", "livedump"),
		"--namespace=livedump-system"}, args...)...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return nil, errors.New(stderr.String())
	}
	objects := rendered{}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(out), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		if len(object.Object) == 0 {
			continue
		}
		key := object.GetKind() + "/" + object.GetName()
		if namespace := object.GetNamespace(); namespace != "" && namespace != "livedump-system" {
			key = namespace + "/" + key
		}
		if objects[key] != nil {
			t.Errorf("%s is rendered twice", key)
		}
		objects[key] = object
	}
}

func mustTemplate(t *testing.T, args ...string) rendered {
	t.Helper()
	objects, err := template(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func as[T any](t *testing.T, objects rendered, key string) *T {
	t.Helper()
	object := objects[key]
	if object == nil {
		t.Fatalf("%s is not rendered", key)
	}
	into := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, into, true); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return into
}

func TestControllerIsRestricted(t *testing.T) {
	objects := mustTemplate(t, "--set-string=controller.image.repository=r/c,controller.image.tag=t1,controller.image.pullPolicy=Never")
	pod := as[appsv1.Deployment](t, objects, "Deployment/livedump-controller").Spec.Template.Spec
	container := pod.Containers[0]
	security := container.SecurityContext
	if !*pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		*security.AllowPrivilegeEscalation || !*security.ReadOnlyRootFilesystem || !slices.Equal(security.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("security contexts: %+v %+v", pod.SecurityContext, security)
	}
	if pod.HostNetwork || pod.HostPID || len(pod.Volumes) != 0 {
		t.Errorf("the controller reaches the host: %+v", pod)
	}
	if container.Image != "r/c:t1" || container.ImagePullPolicy != corev1.PullNever {
		t.Errorf("image %s, %s", container.Image, container.ImagePullPolicy)
	}
	for _, arg := range []string{"--holder-image=r/c:t1", "--holder-image-pull-policy=Never", "--namespaces=livedump-system", "--max-concurrent-dumps=0"} {
		if !slices.Contains(container.Args, arg) {
			t.Errorf("no %s in %v", arg, container.Args)
		}
	}
}

// The images say the same as the chart: only the agent's is for root.
func TestImagesUsers(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	users, stage := map[string]string{}, ""
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 4 && words[0] == "FROM" && words[2] == "AS":
			stage = words[3]
		case len(words) == 2 && words[0] == "USER":
			users[stage] = words[1]
		}
	}
	if users["controller"] != "65532:65532" || users["agent"] != "0:0" {
		t.Errorf("users by stage: %v", users)
	}
}

// Before the release is removed its LiveDumps are ended, by the controller's binary with the controller's rights.
func TestUninstallJob(t *testing.T) {
	args := []string{"--set-string=controller.image.repository=r/c,controller.image.tag=t1", "--set=uninstall.patienceSeconds=33,controller.hostNetwork=true,controller.nodeSelector.pool=infra"}
	objects := mustTemplate(t, args...)
	job := as[batchv1.Job](t, objects, "Job/livedump-uninstall")
	if job.Annotations["helm.sh/hook"] != "pre-delete" || *job.Spec.ActiveDeadlineSeconds != 153 {
		t.Errorf("annotations %v, deadline %d", job.Annotations, *job.Spec.ActiveDeadlineSeconds)
	}
	controller := as[appsv1.Deployment](t, objects, "Deployment/livedump-controller").Spec.Template.Spec
	pod := job.Spec.Template.Spec
	container := pod.Containers[0]
	if container.Image != "r/c:t1" || !slices.Equal(container.Command, []string{"/livedump-controller", "uninstall", "--patience=33s"}) {
		t.Errorf("image %s, command %v", container.Image, container.Command)
	}
	if pod.ServiceAccountName != controller.ServiceAccountName || !pod.HostNetwork || !reflect.DeepEqual(pod.NodeSelector, controller.NodeSelector) ||
		!reflect.DeepEqual(pod.SecurityContext, controller.SecurityContext) || !reflect.DeepEqual(container.SecurityContext, controller.Containers[0].SecurityContext) {
		t.Errorf("the job's pod differs from the controller's: %+v", pod)
	}
	if _, there := mustTemplate(t, "--set=uninstall.enabled=false")["Job/livedump-uninstall"]; there {
		t.Error("the job is rendered though it is not wanted")
	}
}

func TestAgentIsPlacedByLabelAndSurvivesUpgrades(t *testing.T) {
	objects := mustTemplate(t, "--set-string=agent.image.repository=r/a,agent.image.tag=t2", "--set=agent.kubeletDir=/data/kubelet,agent.terminationGracePeriodSeconds=90")
	set := as[appsv1.DaemonSet](t, objects, "DaemonSet/livedump-agent")
	pod := set.Spec.Template.Spec
	container := pod.Containers[0]
	if set.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType || container.Lifecycle != nil {
		t.Errorf("an upgrade would stop a dump: %+v, %+v", set.Spec.UpdateStrategy, container.Lifecycle)
	}
	if !pod.HostPID || !pod.HostNetwork || !*container.SecurityContext.Privileged {
		t.Error("the agent lacks what it needs of the host")
	}
	if pod.NodeSelector[corev1.LabelOSStable] != "linux" || pod.NodeSelector[corev1.LabelArchStable] != "amd64" {
		t.Errorf("node selector: %v", pod.NodeSelector)
	}
	terms := pod.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	if len(terms) != 1 || len(terms[0].MatchExpressions) != 1 || terms[0].MatchExpressions[0].Key != "livedump.io/agent" ||
		!slices.Equal(terms[0].MatchExpressions[0].Values, []string{"on-demand", "resident"}) {
		t.Errorf("affinity: %+v", terms)
	}
	if len(pod.Tolerations) != 1 || pod.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
		t.Errorf("tolerations: %+v", pod.Tolerations)
	}
	if container.Image != "r/a:t2" || !slices.Contains(container.Args, "--grace-period=90s") || *pod.TerminationGracePeriodSeconds != 90 {
		t.Errorf("image %s, args %v, grace %d", container.Image, container.Args, *pod.TerminationGracePeriodSeconds)
	}
	paths := map[string]bool{}
	for _, volume := range pod.Volumes {
		if volume.HostPath != nil {
			paths[volume.HostPath.Path] = true
		}
	}
	for _, path := range []string{"/dev", "/lib/modules", "/data/kubelet"} {
		if !paths[path] {
			t.Errorf("%s of the host is not mounted: %v", path, paths)
		}
	}
	env := map[string]string{}
	for _, variable := range container.Env {
		env[variable.Name] = variable.Value
		if variable.ValueFrom != nil {
			env[variable.Name] = variable.ValueFrom.FieldRef.FieldPath
		}
	}
	if env["NODE_NAME"] != "spec.nodeName" || env["KUBELET_DIR"] != "/data/kubelet" {
		t.Errorf("environment: %v", env)
	}
	// What the controller looks for has to be what the agent's pods carry.
	controller := as[appsv1.Deployment](t, objects, "Deployment/livedump-controller").Spec.Template.Spec.Containers[0]
	for _, arg := range controller.Args {
		if selector, ok := strings.CutPrefix(arg, "--agent-selector="); ok {
			for term := range strings.SplitSeq(selector, ",") {
				key, value, _ := strings.Cut(term, "=")
				if set.Spec.Template.Labels[key] != value {
					t.Errorf("the agent's pods do not match %s: %v", term, set.Spec.Template.Labels)
				}
			}
			return
		}
	}
	t.Error("the controller is given no selector of the agent's pods")
}

// The privileged pod's account can do exactly this.
func TestAgentsRights(t *testing.T) {
	objects := mustTemplate(t, "--set=namespaces={a,b}")
	var got []string
	for key, object := range objects {
		var subjects []rbacv1.Subject
		var role string
		switch object.GetKind() {
		case "ClusterRoleBinding":
			binding := as[rbacv1.ClusterRoleBinding](t, objects, key)
			subjects, role = binding.Subjects, "ClusterRole/"+binding.RoleRef.Name
		case "RoleBinding":
			binding := as[rbacv1.RoleBinding](t, objects, key)
			subjects, role = binding.Subjects, strings.Replace(key, "RoleBinding/"+object.GetName(), "Role/"+binding.RoleRef.Name, 1)
		}
		if !slices.ContainsFunc(subjects, func(s rbacv1.Subject) bool { return s.Name == "livedump-agent" }) {
			continue
		}
		rules := as[rbacv1.ClusterRole](t, objects, role).Rules
		where := ""
		if !strings.HasPrefix(role, "ClusterRole") {
			where, _, _ = strings.Cut(role, "/")
			where += ": "
		}
		for _, rule := range rules {
			got = append(got, where+strings.Join(rule.Verbs, ",")+" "+strings.Join(rule.APIGroups, ",")+"/"+strings.Join(rule.Resources, ","))
		}
	}
	slices.Sort(got)
	want := []string{"a: patch livedump.io/livedumps/status", "b: patch livedump.io/livedumps/status", "get,list,watch livedump.io/livedumps"}
	if !slices.Equal(got, want) {
		t.Errorf("rights:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestNamespacesReachEveryPart(t *testing.T) {
	objects := mustTemplate(t, "--set=namespaces={b,a}")
	for _, namespace := range []string{"a", "b"} {
		for _, role := range []string{"holder", "agent"} {
			if objects[namespace+"/RoleBinding/livedump-system-livedump-"+role] == nil {
				t.Errorf("no rights of the %s in namespace %s", role, namespace)
			}
		}
	}
	if args := as[appsv1.Deployment](t, objects, "Deployment/livedump-controller").Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--namespaces=a,b") {
		t.Errorf("arguments: %v", args)
	}
	policy := objects["ValidatingAdmissionPolicy/livedump-system-livedump-namespaces"]
	if policy == nil {
		t.Fatal("no policy for namespaces")
	}
	validations, _, err := unstructured.NestedSlice(policy.Object, "spec", "validations")
	if err != nil || len(validations) != 1 || validations[0].(map[string]any)["expression"] != `request.namespace in ["a","b"]` {
		t.Errorf("validations: %v %v", validations, err)
	}
}

func TestCRDStaysUnlessToldOtherwise(t *testing.T) {
	const key = "CustomResourceDefinition/livedumps.livedump.io"
	const policy = "helm.sh/resource-policy"
	if got := mustTemplate(t)[key].GetAnnotations()[policy]; got != "keep" {
		t.Errorf("by default the CRD's policy is %q", got)
	}
	if annotations := mustTemplate(t, "--set=crds.keep=false")[key].GetAnnotations(); annotations[policy] != "" {
		t.Errorf("annotations: %v", annotations)
	}
	if objects := mustTemplate(t, "--set=crds.install=false"); objects[key] != nil {
		t.Error("the CRD is rendered though it is not to be installed")
	}
}

func TestPoliciesCanBeLeftOut(t *testing.T) {
	for key := range mustTemplate(t, "--set=admissionPolicies.enabled=false") {
		if strings.HasPrefix(key, "ValidatingAdmissionPolicy") {
			t.Errorf("%s is rendered", key)
		}
	}
}

// The holder speaks to nobody, and the policy has to meet the labels that the controller gives it.
func TestHoldersHaveNoNetwork(t *testing.T) {
	objects := mustTemplate(t, "--set=namespaces={dumps,other}")
	for _, namespace := range []string{"dumps", "other"} {
		policy := as[networkingv1.NetworkPolicy](t, objects, namespace+"/NetworkPolicy/livedump-system-livedump-holder")
		if len(policy.Spec.PolicyTypes) != 2 || len(policy.Spec.Ingress)+len(policy.Spec.Egress) != 0 {
			t.Errorf("%s: the holder may speak: %+v", namespace, policy.Spec)
		}
		selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
		if err != nil {
			t.Fatal(err)
		}
		if !selector.Matches(labels.Set(controllers.HolderLabels())) {
			t.Errorf("%s: the policy selects %s, and holders have %v", namespace, selector, controllers.HolderLabels())
		}
		if !selector.Matches(labels.Set(fetch.ReaderLabels())) {
			t.Errorf("%s: the policy selects %s, and readers have %v", namespace, selector, fetch.ReaderLabels())
		}
	}
	for key := range mustTemplate(t, "--set=networkPolicies.enabled=false") {
		if strings.Contains(key, "NetworkPolicy/") {
			t.Errorf("%s is rendered", key)
		}
	}
}

func TestTwoReleasesDoNotMeet(t *testing.T) {
	objects := mustTemplate(t)
	for key := range mustTemplate(t, "--namespace=other", "--set=crds.install=false") {
		if _, namespaced, _ := strings.Cut(key, "other/"); namespaced == "" && objects[key] != nil {
			t.Errorf("both releases have %s", key)
		}
	}
}

// A mistake in the values is told before anything is installed.
func TestBadValues(t *testing.T) {
	for name, test := range map[string]struct{ set, message string }{
		"misspelt value":      {"controler.replicas=2", "controler"},
		"misspelt below":      {"agent.image.tagg=x", "tagg"},
		"namespaces as text":  {"namespaces=a", "namespaces"},
		"bad namespace":       {"namespaces={Kube_System}", "namespaces"},
		"namespace twice":     {"namespaces={a,a}", "namespaces"},
		"bad pull policy":     {"controller.image.pullPolicy=Sometimes", "pullPolicy"},
		"no repository":       {"agent.image.repository=", "repository"},
		"bad port":            {"controller.metrics.port=70000", "port"},
		"relative kubelet":    {"agent.kubeletDir=var/lib/kubelet", "kubeletDir"},
		"no time to thaw":     {"agent.terminationGracePeriodSeconds=0", "terminationGracePeriodSeconds"},
		"bad log level":       {"controller.logLevel=loud", "logLevel"},
		"negative limit":      {"controller.maxConcurrentDumps=-1", "maxConcurrentDumps"},
		"no patience":         {"uninstall.patienceSeconds=0", "patienceSeconds"},
		"bad update strategy": {"agent.updateStrategy.type=Recreate", "updateStrategy"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := template(t, "--set="+test.set); err == nil || !strings.Contains(err.Error(), test.message) {
				t.Errorf("error: %v, want one that names %s", err, test.message)
			}
		})
	}
}

func TestOldKubernetesIsRefused(t *testing.T) {
	if _, err := template(t, "--kube-version=1.31.9"); err == nil || !strings.Contains(err.Error(), "1.32") {
		t.Errorf("error: %v", err)
	}
}

func TestNotesWarnWithoutPolicies(t *testing.T) {
	notes := func(args ...string) string {
		helm := os.Getenv("HELM")
		if helm == "" {
			t.Skip("HELM is not set to the helm binary; make test-chart does")
		}
		out, err := exec.Command(helm, append([]string{"install", "livedump", filepath.Join("..", "..", "charts", "livedump"),
			"--namespace=livedump-system", "--dry-run=client"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, after, _ := strings.Cut(string(out), "NOTES:")
		return after
	}
	if got := notes(); !strings.Contains(got, "livedump-system") || strings.Contains(got, "WARNING") {
		t.Errorf("notes: %s", got)
	}
	if got := notes("--set=uninstall.enabled=false"); !strings.Contains(got, "uninstalling") || !strings.Contains(got, "WARNING") {
		t.Errorf("notes: %s", got)
	}
	if got := notes("--set=admissionPolicies.enabled=false"); !strings.Contains(got, "WARNING") {
		t.Errorf("notes: %s", got)
	}
}
