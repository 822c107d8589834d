// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/blockdev/blockdevtest"
)

// kubeconfig has the agent's token, bound to its pod as the kubelet binds it.
func (a *agent) kubeconfig() string {
	w := a.w
	w.t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{
		Kind: "Pod", APIVersion: "v1", Name: a.pod.Name, UID: a.pod.UID}}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: releaseNamespace, Name: agentAccount}}
	w.must(admin.SubResource("token").Create(w.ctx, account, request))
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: adminConfig.Host, CertificateAuthorityData: adminConfig.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	path := filepath.Join(w.t.TempDir(), "kubeconfig")
	w.must(clientcmd.WriteToFile(*config, path))
	return path
}

// The agent's binary as it is shipped, on this machine: it refuses every target that it must not touch, with the
// reason, before any module is looked for, and ends cleanly on SIGTERM. The kubelet's directory is the test's.
func TestAgentBinary(t *testing.T) {
	w := newWorld(t)
	binary := filepath.Join(t.TempDir(), "livedump-agent")
	build := exec.Command("go", "build", "-o", binary, "livedump.io/cmd/livedump-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the agent: %v\n%s", err, out)
	}

	kubelet := t.TempDir()
	health := freeAddress(t)
	var log bytes.Buffer
	var process *exec.Cmd
	ended := make(chan error, 1)
	t.Cleanup(func() {
		if process != nil {
			_ = process.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("the agent's output:\n%s", log.String())
		}
	})
	// Its pod is there beforehand, as on a node with a resident agent.
	a := w.startAgentOn(w.node)
	process = exec.Command(binary, "run", "--host-root=/", "--kubelet-dir="+kubelet, "--module-dir="+t.TempDir(), "--host-module-dir=",
		"--health-address="+health)
	process.Env = append(os.Environ(), "NODE_NAME="+w.node, "KUBECONFIG="+a.kubeconfig())
	process.Stdout, process.Stderr = &log, &log
	w.must(process.Start())
	go func() { ended <- process.Wait() }()
	eventually(t, func() error { _, err := get("http://"+health+"/readyz", "", http.StatusOK); return err })

	file := filepath.Join(t.TempDir(), "file")
	w.must(os.WriteFile(file, []byte("precious"), 0o600))
	for _, tc := range []struct {
		name   string
		target func(t *testing.T) string // what the kubelet's link leads to
		reason string
		says   string
	}{
		{"not attached", nil, v1alpha1.ReasonTargetNotFound, "kubelet"},
		{"a file", func(*testing.T) string { return file }, v1alpha1.ReasonTargetInvalid, "regular file"},
		{"smaller than its volume", func(t *testing.T) string { device, _ := blockdevtest.Loop(t, 16<<20); return device },
			v1alpha1.ReasonTargetTooSmall, "4294967296 are needed"},
		{"with data", func(t *testing.T) string {
			device, _ := blockdevtest.Loop(t, 4<<30)
			writeTo(t, device, bytes.Repeat([]byte("data"), 1024))
			return device
		}, v1alpha1.ReasonTargetNotEmpty, "not zero"},
		{"no module", func(t *testing.T) string { device, _ := blockdevtest.Loop(t, 4<<30); return device },
			v1alpha1.ReasonModuleNotFound, "livedump.ko"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// The link is there before the agent sees the holder, as with a kubelet.
			w := &world{t: t, ctx: t.Context(), node: w.node, claim: w.claim}
			dump := w.create(strings.ReplaceAll(tc.name, " ", "-"), nil)
			pod := w.awaitHolder(dump)
			if tc.target != nil {
				dir := filepath.Join(kubelet, "pods", string(pod.UID), "volumeDevices", "kubernetes.io~local-volume")
				w.must(os.MkdirAll(dir, 0o700))
				w.must(os.Symlink(tc.target(t), filepath.Join(dir, w.claim)))
			}
			// A kubelet takes it away when the pod ends.
			defer func() { w.must(os.RemoveAll(filepath.Join(kubelet, "pods", string(pod.UID)))) }()
			w.runPod(pod, w.node)
			c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, tc.reason)
			if !strings.Contains(c.Message, tc.says) {
				t.Errorf("message %q, want %q in it", c.Message, tc.says)
			}
			w.awaitReleased(dump)
		})
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
		t.Errorf("the file: %q, %v", got, err)
	}
	w.must(process.Process.Signal(syscall.SIGTERM))
	if err := <-ended; err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	process = nil
	if strings.Contains(log.String(), "forbidden") {
		t.Error("a right is missing")
	}
}

func writeTo(t *testing.T, device string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
}

// awaitHolder is the holder as the scheduler sees it first.
func (w *world) awaitHolder(dump *v1alpha1.LiveDump) *corev1.Pod {
	w.t.Helper()
	dump = w.get(dump)
	var pod *corev1.Pod
	eventually(w.t, func() error {
		var err error
		if pod, err = w.holder(dump); err == nil && pod == nil {
			err = errors.New("no holder")
		}
		return err
	})
	return pod
}
