// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a Kubernetes cluster of real parts for tests: etcd, the
// API server, the controller manager and the scheduler as processes, and one
// node (kubelet, containerd, runc) in a guest with Debian's kernel. It expects
// network and mount namespaces of its own; see package isolate.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/test/guest"
)

// Options say what cluster to start.
type Options struct {
	// Root is the top of the source tree.
	Root string
	// Dir is for keys, etcd's data and disks. It must exist.
	Dir string
	// LogDir is where the servers' logs go. It must exist.
	LogDir string
	// Kernel is what the node runs.
	Kernel *guest.Kernel
	// NodeName is also the guest's hostname.
	NodeName  string
	MemoryMiB int
	CPUs      int
	// Disks are the node's further disks, /dev/vdb and on.
	Disks []guest.Disk
	// Images is an archive of the images for the node's container runtime,
	// PauseImage among them.
	Images string
	// Console is the file for what the node's kernel prints.
	Console string
	// Progress is told what is being done.
	Progress func(format string, args ...any)
}

// Cluster is a running cluster.
type Cluster struct {
	// Guest is the node's machine.
	Guest *guest.Guest
	// Kubeconfig is a file with an administrator's credentials.
	Kubeconfig string
	// Config and Client are the administrator's, for Go.
	Config *rest.Config
	Client client.WithWatch

	options   Options
	dir       string
	logDir    string
	tools     Tools
	pki       *authority
	processes []*process
	endGuest  context.CancelFunc
	leaveNode context.CancelFunc
	// guestServers are those that were started in the guest.
	guestServers []string
	progress     func(string, ...any)
	fail         context.CancelCauseFunc
}

// Start starts a cluster and returns when its node is ready. The context that
// it returns ends with ctx or when a part of the cluster ends by itself; then
// context.Cause says which and why. Call Stop also after an error.
func Start(ctx context.Context, options Options) (*Cluster, context.Context, error) {
	ctx, fail := context.WithCancelCause(ctx)
	c := &Cluster{
		options: options, dir: options.Dir, logDir: options.LogDir,
		tools: Tools{Root: options.Root}, progress: options.Progress, fail: fail,
	}
	err := c.run(ctx)
	if err != nil && ctx.Err() != nil {
		// The cause is the news; that what was under way then failed is not.
		err = context.Cause(ctx)
	}
	return c, ctx, err
}

func (c *Cluster) run(ctx context.Context) error {
	var err error
	keys := filepath.Join(c.dir, "pki")
	if err := os.MkdirAll(keys, 0o700); err != nil {
		return err
	}
	if c.pki, err = newAuthority(keys); err != nil {
		return fmt.Errorf("certificate authority: %w", err)
	}
	c.progress("starting etcd and the API server, booting the node's guest")
	node := make(chan error, 1)
	go func() { node <- c.startNode(ctx) }()
	if err := errors.Join(c.startControlPlane(ctx), c.connect()); err != nil {
		c.fail(err)
		<-node
		return err
	}
	c.progress("API server, controller manager and scheduler are up")
	if err := <-node; err != nil {
		return err
	}
	if err := c.waitNodeReady(ctx); err != nil {
		return err
	}
	c.progress("node %s is Ready", c.options.NodeName)
	return nil
}

func (c *Cluster) connect() error {
	if c.Kubeconfig == "" {
		return nil // the control plane did not get that far, and its error says why
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return err
	}
	// Polling must not be held up by the client's own limits.
	config.QPS, config.Burst = 100, 200
	c.Config = config
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), livedumpv1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	c.Client, err = client.NewWithWatch(config, client.Options{Scheme: scheme})
	return err
}

// NodeName is the name of the cluster's node.
func (c *Cluster) NodeName() string { return c.options.NodeName }

// Stop ends everything that Start started, also after half a start. It saves the
// logs of the guest's servers first.
func (c *Cluster) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var errs []error
	if c.Guest != nil {
		for _, name := range c.guestServers {
			if err := c.saveGuestLog(ctx, name); err != nil {
				errs = append(errs, err)
			}
		}
	}
	c.fail(errors.New("the cluster is being stopped"))
	if c.Guest != nil {
		errs = append(errs, c.Guest.Stop())
	}
	if c.endGuest != nil {
		c.endGuest()
	}
	// In the reverse order of starting: nobody is left without what it talks to.
	for i := len(c.processes) - 1; i >= 0; i-- {
		c.processes[i].stop(ctx)
	}
	return errors.Join(errs...)
}

func (c *Cluster) saveGuestLog(ctx context.Context, name string) error {
	select {
	case <-c.Guest.Exited():
		return nil // nobody to ask any more
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	log, err := os.Create(filepath.Join(c.logDir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	return c.Guest.Get(ctx, GuestLog(name), log)
}

// Kubectl runs kubectl as an administrator and returns what it printed. The
// error has what it said on stderr.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	return c.tool(ctx, "kubectl", stdin, args...)
}

// Helm runs helm as an administrator and returns what it printed.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	return c.tool(ctx, "helm", nil, args...)
}

func (c *Cluster) tool(ctx context.Context, name string, stdin io.Reader, args ...string) (string, error) {
	path, err := c.tools.Path(name)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "HOME="+c.dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// User makes credentials of a user without any rights, and gives the kubeconfig with them.
func (c *Cluster) User(name string) (kubeconfig string, err error) {
	config, err := clientcmd.LoadFromFile(c.Kubeconfig)
	if err != nil {
		return "", err
	}
	return c.pki.kubeconfig("user-"+name, config.Clusters[config.Contexts[config.CurrentContext].Cluster].Server, name)
}
