// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"livedump.io/test/guest"
)

// PauseImage is the reference that the container runtime is configured to take
// sandboxes from; it must be among Options.Images.
const PauseImage = "livedump.test/pause:1"

const (
	guestAddress = "10.0.2.15"
	podRange     = "10.88.0.0/24"
	kubeletPort  = "10250"
	criSocket    = "/run/containerd/containerd.sock"
	imagesFile   = "/opt/images.tar"
)

// nodeModules are what the container runtime, the rules below and the tests need of the
// kernel. The kernel would load most by itself, but for that it calls modprobe
// in the middle of other work; loading them at boot makes runs alike.
var nodeModules = []string{
	"overlay", "loop", "bridge", "br_netfilter", "veth",
	"nf_tables", "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct",
	"dm_mod", "dm_flakey", // for targets that fail
}

// startNode boots the guest and starts containerd and the kubelet in it. The
// kubelet finds the API server by itself, whenever that is ready.
func (c *Cluster) startNode(ctx context.Context) error {
	files, err := c.nodeFiles()
	if err != nil {
		return err
	}
	if err := guest.BuildDisk(ctx, c.rootDisk(), 8<<10, files); err != nil {
		return fmt.Errorf("node's root disk: %w", err)
	}
	return c.bootNode(ctx, c.options.Console)
}

func (c *Cluster) rootDisk() string { return filepath.Join(c.dir, "node-root.img") }

// ResetNode resets the node's machine, as a power failure does, and boots it anew. What it had on its root disk is gone too. The console
// of the new boot goes to a file of its own.
func (c *Cluster) ResetNode(ctx context.Context, console string) error {
	if err := c.Guest.CheckConsole(); err != nil {
		return err
	}
	c.leaveNode() // its end is no news
	if err := c.Guest.Reset(ctx); err != nil {
		return err
	}
	select {
	case <-c.Guest.Exited(): // QEMU ends when a guest starts anew
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := c.Guest.Stop(); err != nil {
		return err
	}
	c.endGuest()
	c.guestServers = nil
	return c.bootNode(ctx, console)
}

// bootNode boots the guest from its root disk. The parts of it are watched until ctx ends or leaveNode is called.
func (c *Cluster) bootNode(ctx context.Context, console string) error {
	ctx, c.leaveNode = context.WithCancel(ctx)
	var err error
	// Booting ends with ctx, but once it is up the guest lives until Stop: it has
	// logs to save.
	lifetime, end := context.WithCancel(context.WithoutCancel(ctx))
	c.endGuest = end
	booted := context.AfterFunc(ctx, end)
	c.Guest, err = guest.Start(lifetime, guest.Config{
		Kernel: c.options.Kernel, Dir: filepath.Join(c.dir, "guest"), Console: console,
		MemoryMiB: c.options.MemoryMiB, CPUs: c.options.CPUs,
		RootDisk: c.rootDisk(), Disks: c.options.Disks, Modules: nodeModules,
		Hostname:    c.options.NodeName,
		HostForward: []string{"127.0.0.1:" + kubeletPort + ":" + kubeletPort},
		// The kernel's messages are what is checked for trouble; nothing else goes to the console.
		Append: []string{"loglevel=7"},
	})
	if err != nil {
		return fmt.Errorf("boot the node: %w", err)
	}
	booted()
	go func() {
		select {
		case <-ctx.Done():
		case <-c.Guest.Exited():
			c.fail(errors.New("the node's guest ended; see guest.log"))
		}
	}()
	c.progress("guest is up: Linux %s; starting containerd and the kubelet", c.Guest.Release())

	if _, err := c.Guest.Run(ctx, "nft", "-f", "/etc/node.nft"); err != nil {
		return fmt.Errorf("node's network rules: %w", err)
	}
	if _, err := c.Guest.Run(ctx, "sysctl", "-w", "net.ipv4.ip_forward=1"); err != nil {
		return fmt.Errorf("node's network: %w", err)
	}
	if err := c.startInGuest(ctx, "containerd", "/usr/bin/containerd", "--config=/etc/containerd/config.toml"); err != nil {
		return err
	}
	// Starting a program is slow in the guest, so it is not ctr that is tried again and again.
	if err := Poll(ctx, "containerd in the guest", readyWithin, func(ctx context.Context) (bool, string, error) {
		_, err := c.Guest.Run(ctx, "test", "-S", criSocket)
		return err == nil, "", err
	}); err != nil {
		return err
	}
	if _, err := c.Guest.Run(ctx, "ctr", "-a", criSocket, "--connect-timeout=60s", "-n", "k8s.io", "images", "import", imagesFile); err != nil {
		return fmt.Errorf("import the images: %w", err)
	}
	return c.startInGuest(ctx, "kubelet", "/usr/bin/kubelet", "--config=/etc/kubernetes/kubelet.yaml",
		"--kubeconfig=/etc/kubernetes/kubelet.kubeconfig", "--hostname-override="+c.options.NodeName, "--node-ip="+guestAddress)
}

func (c *Cluster) startInGuest(ctx context.Context, name string, argv ...string) error {
	command := c.Guest.Command(argv...)
	command.LogFile = GuestLog(name)
	if err := command.Start(ctx); err != nil {
		return err
	}
	c.guestServers = append(c.guestServers, name)
	go func() {
		err := command.Wait(ctx)
		if ctx.Err() != nil {
			return
		}
		log, _ := c.Guest.Run(ctx, "tail", "-n", "5", command.LogFile)
		c.fail(fmt.Errorf("%s ended in the guest: %w; its last words:\n%s", name, err, log.Stdout))
	}()
	return nil
}

// GuestLog is where a server's log is in the guest.
func GuestLog(name string) string { return "/var/log/" + name + ".log" }

// waitNodeReady returns when the node reports Ready and pods can get what every
// pod gets: a service account and the cluster's certificate.
func (c *Cluster) waitNodeReady(ctx context.Context) error {
	err := Poll(ctx, "node "+c.options.NodeName, 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		var node corev1.Node
		if err := c.Client.Get(ctx, types.NamespacedName{Name: c.options.NodeName}, &node); err != nil {
			return false, "", err
		}
		ready, why := nodeReady(&node)
		return ready, why, nil
	})
	if err != nil {
		return err
	}
	return Poll(ctx, "the default service account", time.Minute, func(ctx context.Context) (bool, string, error) {
		var account corev1.ServiceAccount
		if err := c.Client.Get(ctx, types.NamespacedName{Namespace: "default", Name: "default"}, &account); err != nil {
			return false, "", err
		}
		var roots corev1.ConfigMap
		err := c.Client.Get(ctx, types.NamespacedName{Namespace: "default", Name: "kube-root-ca.crt"}, &roots)
		return err == nil, "", err
	})
}

func nodeReady(node *corev1.Node) (ready bool, why string) {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue,
				fmt.Sprintf("Ready=%s: %s: %s", condition.Status, condition.Reason, condition.Message)
		}
	}
	return false, "the node has no condition Ready"
}

// nodeFiles is what the guest's root disk holds.
func (c *Cluster) nodeFiles() ([]guest.File, error) {
	runtime, err := c.tools.script("hack/node-packages")
	if err != nil {
		return nil, err
	}
	kubelet, err := c.tools.Path("kubelet")
	if err != nil {
		return nil, err
	}
	name := c.options.NodeName
	serving, err := c.pki.issue("kubelet-serving", name, nil, name, guestAddress)
	if err != nil {
		return nil, err
	}
	kubeconfig, err := c.pki.kubeconfig("kubelet", "https://"+hostFromGuest+":"+apiPort, "system:node:"+name, "system:nodes")
	if err != nil {
		return nil, err
	}
	kernel := c.options.Kernel
	files := append(guest.BusyboxFiles(),
		guest.File{Path: "/", Source: runtime},
		guest.File{Path: path.Join("/lib/modules", kernel.Release), Source: kernel.ModulesDir()},
		guest.File{Path: "/usr/bin/kubelet", Source: kubelet, Mode: 0o755},
		guest.File{Path: "/etc/kubernetes/ca.crt", Source: c.pki.certFile()},
		guest.File{Path: "/etc/kubernetes/kubelet.crt", Source: serving.certFile},
		guest.File{Path: "/etc/kubernetes/kubelet.key", Source: serving.keyFile},
		guest.File{Path: "/etc/kubernetes/kubelet.kubeconfig", Source: kubeconfig},
		guest.File{Path: "/etc/kubernetes/kubelet.yaml", Data: []byte(kubeletConfig)},
		guest.File{Path: "/etc/containerd/config.toml", Data: []byte(containerdConfig)},
		guest.File{Path: "/etc/cni/net.d/10-bridge.conflist", Data: []byte(cniConfig)},
		guest.File{Path: "/etc/node.nft", Data: []byte(networkRules)},
		guest.File{Path: "/etc/os-release", Data: []byte("NAME=\"livedump test node\"\nID=livedump-test\nPRETTY_NAME=\"livedump test node\"\n")},
		guest.File{Path: "/etc/hostname", Data: []byte(name + "\n")},
		// The kubelet reports it; guests may all be alike as there is one per cluster.
		guest.File{Path: "/etc/machine-id", Data: bytes.Repeat([]byte("5"), 32)},
		guest.File{Path: "/etc/resolv.conf"},
		guest.File{Path: imagesFile, Source: c.options.Images},
	)
	return files, nil
}

// kubeletConfig: thresholds are relaxed because the guest's disk and memory are
// small; the rest is how a node is run in production: no anonymous requests,
// authorisation by the API server.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
containerRuntimeEndpoint: unix://` + criSocket + `
cgroupDriver: cgroupfs
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
`

const containerdConfig = `version = 2
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "` + criSocket + `"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "/usr/sbin/runc"
`

const cniConfig = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{
  "type": "bridge", "bridge": "cni0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "` + podRange + `"}]], "routes": [{"dst": "0.0.0.0/0"}]}
}]}
`

// networkRules stand in for kube-proxy: the one service that pods here need is
// the API server's, and it never moves.
const networkRules = `table ip node {
	chain prerouting {
		type nat hook prerouting priority -100;
		ip daddr ` + serviceIP + ` tcp dport 443 dnat to ` + hostFromGuest + `:` + apiPort + `
	}
	chain output {
		type nat hook output priority -100;
		ip daddr ` + serviceIP + ` tcp dport 443 dnat to ` + hostFromGuest + `:` + apiPort + `
	}
	chain postrouting {
		type nat hook postrouting priority 100;
		ip saddr ` + podRange + ` oifname "eth0" masquerade
	}
}
`
