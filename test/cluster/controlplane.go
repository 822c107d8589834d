// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"
	"time"
)

// Addresses of the control plane. They are fixed because it runs in a network
// namespace of its own.
const (
	apiPort = "6443"
	// hostFromGuest is the machine's loopback as QEMU's user network shows it to a guest.
	hostFromGuest = "10.0.2.2"
	serviceRange  = "10.96.0.0/16"
	// serviceIP is the first address of serviceRange: where pods look for the API server.
	serviceIP = "10.96.0.1"

	etcdClient = "http://127.0.0.1:2379"
	etcdPeer   = "http://127.0.0.1:2380"
)

// readyWithin is generous: on a busy machine of two CPUs the servers take several times as long as usual.
const readyWithin = 3 * time.Minute

// startControlPlane starts etcd, the API server, the controller manager and the
// scheduler and waits until the API server is ready.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	private, public, err := serviceAccountKey(c.pki.dir)
	if err != nil {
		return fmt.Errorf("service account key: %w", err)
	}
	serving, err := c.pki.issue("apiserver", "kube-apiserver", nil, "localhost", "kubernetes", "kubernetes.default",
		"kubernetes.default.svc", "127.0.0.1", serviceIP, hostFromGuest)
	if err != nil {
		return err
	}
	toKubelet, err := c.pki.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", []string{"system:masters"})
	if err != nil {
		return err
	}
	server := "https://127.0.0.1:" + apiPort
	if c.Kubeconfig, err = c.pki.kubeconfig("admin", server, "livedump-test-admin", "system:masters"); err != nil {
		return err
	}
	manager, err := c.pki.kubeconfig("controller-manager", server, "system:kube-controller-manager")
	if err != nil {
		return err
	}
	scheduler, err := c.pki.kubeconfig("scheduler", server, "system:kube-scheduler")
	if err != nil {
		return err
	}

	ca := c.pki.certFile()
	if err := c.start(ctx, "etcd",
		"--data-dir="+filepath.Join(c.dir, "etcd"),
		// Nothing here outlives the run, so nothing needs to reach the disk.
		"--unsafe-no-fsync",
		"--listen-client-urls="+etcdClient, "--advertise-client-urls="+etcdClient,
		"--listen-peer-urls="+etcdPeer, "--initial-advertise-peer-urls="+etcdPeer, "--initial-cluster=default="+etcdPeer,
	); err != nil {
		return err
	}
	if err := c.start(ctx, "kube-apiserver",
		"--etcd-servers="+etcdClient,
		"--secure-port="+apiPort, "--advertise-address="+hostFromGuest,
		"--tls-cert-file="+serving.certFile, "--tls-private-key-file="+serving.keyFile,
		"--client-ca-file="+ca, "--anonymous-auth=false",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+public, "--service-account-signing-key-file="+private,
		"--service-cluster-ip-range="+serviceRange,
		"--allow-privileged=true",
		// The kubelet is behind a forwarded port of this machine's loopback; only
		// its host name leads there.
		"--kubelet-preferred-address-types=Hostname",
		"--kubelet-certificate-authority="+ca,
		"--kubelet-client-certificate="+toKubelet.certFile, "--kubelet-client-key="+toKubelet.keyFile,
	); err != nil {
		return err
	}
	if err := c.waitReady(ctx, toKubelet, server); err != nil {
		return err
	}
	if err := c.start(ctx, "kube-controller-manager",
		"--kubeconfig="+manager, "--authentication-kubeconfig="+manager, "--authorization-kubeconfig="+manager,
		"--service-account-private-key-file="+private, "--root-ca-file="+ca,
		"--use-service-account-credentials", "--leader-elect=false", "--bind-address=127.0.0.1",
	); err != nil {
		return err
	}
	return c.start(ctx, "kube-scheduler",
		"--kubeconfig="+scheduler, "--authentication-kubeconfig="+scheduler, "--authorization-kubeconfig="+scheduler,
		"--leader-elect=false", "--bind-address=127.0.0.1",
	)
}

// start runs one of the tools as a server that must not end before the cluster does.
func (c *Cluster) start(ctx context.Context, name string, args ...string) error {
	path, err := c.tools.Path(name)
	if err != nil {
		return err
	}
	p, err := startProcess(c.logDir, name, path, args...)
	if err != nil {
		return err
	}
	c.processes = append(c.processes, p)
	go p.watch(ctx, c.fail)
	return nil
}

// waitReady polls /readyz with a client certificate, for anonymous requests are refused.
func (c *Cluster) waitReady(ctx context.Context, as identity, server string) error {
	pair, err := tls.X509KeyPair(as.certPEM, as.keyPEM)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.pki.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	return Poll(ctx, "the API server's readiness", readyWithin, func(ctx context.Context) (bool, string, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/readyz", nil)
		if err != nil {
			return false, "", Final{err}
		}
		response, err := client.Do(request)
		if err != nil {
			return false, "", err
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK, response.Status, nil
	})
}
