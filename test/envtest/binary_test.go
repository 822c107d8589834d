// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The binary as it is shipped, with the token of its service account: it takes the lease,
// is ready, guards its metrics, and gives the lease back on SIGTERM.
func TestBinary(t *testing.T) {
	binary := os.Getenv("CONTROLLER")
	if binary == "" {
		t.Fatal("CONTROLLER is not set to the controller's binary (run make test-controller)")
	}
	w := &world{t: t, ctx: t.Context()}
	metrics, probes := freeAddress(t), freeAddress(t)
	var log bytes.Buffer
	command := exec.Command(binary, "--namespaces="+dumpNamespace, "--holder-image=example.test/controller:1",
		"--metrics-bind-address="+metrics, "--health-probe-bind-address="+probes)
	command.Env = append(os.Environ(), "POD_NAMESPACE="+releaseNamespace, "KUBECONFIG="+w.kubeconfig(controllerAccount))
	command.Stdout, command.Stderr = &log, &log
	w.must(command.Start())
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	running := true
	t.Cleanup(func() {
		if running {
			_ = command.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("the controller's output:\n%s", log.String())
		}
	})

	eventually(t, func() error {
		select {
		case err := <-ended:
			running = false
			t.Fatalf("the controller ended: %v", err)
		default:
		}
		_, err := get("http://"+probes+"/readyz", "", http.StatusOK)
		return err
	})
	lease := func() (string, error) {
		l := &coordinationv1.Lease{}
		if err := admin.Get(t.Context(), client.ObjectKey{Namespace: releaseNamespace, Name: "controller.livedump.io"}, l); err != nil {
			return "", err
		}
		if l.Spec.HolderIdentity == nil {
			return "", nil
		}
		return *l.Spec.HolderIdentity, nil
	}
	eventually(t, func() error {
		holder, err := lease()
		if err == nil && holder == "" {
			err = errors.New("nobody has the lease")
		}
		return err
	})

	url := "https://" + metrics + "/metrics"
	eventually(t, func() error { _, err := get(url, "", http.StatusUnauthorized); return err })
	if _, err := get(url, w.token(w.account("stranger")), http.StatusForbidden); err != nil {
		t.Errorf("metrics for an account without the right: %v", err)
	}
	token := w.token(w.account("scraper"))
	w.must(admin.Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "scraper"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: releaseNamespace + "-livedump-metrics"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: otherNamespace, Name: "scraper"}}}))
	eventually(t, func() error {
		body, err := get(url, token, http.StatusOK)
		if err == nil && (!strings.Contains(body, "controller_runtime_reconcile_total") || !strings.Contains(body, "livedump_livedumps{")) {
			err = fmt.Errorf("not what metrics look like: %.200s", body)
		}
		return err
	})

	// The certificate is the server's own, made at its start.
	connection, err := tls.Dial("tcp", metrics, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := connection.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("a client that offers HTTP/2 gets %q", got)
	}
	connection.Close()

	w.must(command.Process.Signal(syscall.SIGTERM))
	if err := <-ended; err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	running = false
	if holder, err := lease(); err != nil || holder != "" {
		t.Errorf("the lease after the end: %q, %v", holder, err)
	}
	if strings.Contains(log.String(), "forbidden") {
		t.Error("a right is missing")
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// get wants this status and gives the body.
func get(url, token string, status int) (string, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	// The certificate is made at the start and signed by nobody. HTTP/2 is asked for, to see that it is off.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != status {
		return "", fmt.Errorf("%s: %s, want %d: %.200s", url, response.Status, status, body)
	}
	if response.ProtoMajor != 1 {
		return "", fmt.Errorf("%s: served by %s", url, response.Proto)
	}
	return string(body), nil
}

func (w *world) account(name string) *corev1.ServiceAccount {
	w.t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: otherNamespace, Name: name}}
	w.must(admin.Create(w.ctx, account))
	return account
}

func (w *world) token(account *corev1.ServiceAccount) string {
	w.t.Helper()
	request := &authenticationv1.TokenRequest{}
	w.must(admin.SubResource("token").Create(w.ctx, account, request))
	return request.Status.Token
}

// kubeconfig of a service account of the release.
func (w *world) kubeconfig(account string) string {
	w.t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: adminConfig.Host, CertificateAuthorityData: adminConfig.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: w.token(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: releaseNamespace, Name: account}})}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	path := filepath.Join(w.t.TempDir(), "kubeconfig")
	w.must(clientcmd.WriteToFile(*config, path))
	return path
}
