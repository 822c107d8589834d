// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"livedump.io/api/v1alpha1"
	"livedump.io/test/cluster"
)

const (
	releaseNamespace  = "livedump-system"
	dumpNamespace     = "dumps"
	controllerAccount = "livedump-controller"
	agentAccount      = "livedump-agent"
)

// scaleCluster is the control plane and what else runs as processes.
type scaleCluster struct {
	environment *envtest.Environment
	config      *rest.Config
	admin       client.Client
	scheme      *runtime.Scheme
	audit       *audit
	logs        string
	state       string
	processes   []*exec.Cmd
	controller  *exec.Cmd
	fail        context.CancelCauseFunc
}

// kwokStages make pods run and nodes Ready at once, and let deleted pods go.
const kwokStages = `apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node-ready}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
      - {key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: NotIn, values: ["True"]}
  next:
    statusTemplate: |
      conditions:
        - {type: Ready, status: "True", reason: KubeletReady, message: kwok, lastHeartbeatTime: {{ Now | Quote }}, lastTransitionTime: {{ Now | Quote }}}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-runs}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
      - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
      - {key: .status.phase, operator: In, values: [Pending]}
  next:
    statusTemplate: |
      phase: Running
      startTime: {{ Now | Quote }}
      conditions:
        - {type: Ready, status: "True", lastTransitionTime: {{ Now | Quote }}}
        - {type: ContainersReady, status: "True", lastTransitionTime: {{ Now | Quote }}}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-gone}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
      - {key: .metadata.deletionTimestamp, operator: Exists}
  next:
    delete: true
`

// startCluster starts everything up to the controller. The context that it returns ends when a process does.
func startCluster(ctx context.Context, o options) (*scaleCluster, context.Context, error) {
	ctx, fail := context.WithCancelCause(ctx)
	c := &scaleCluster{audit: &audit{}, logs: o.logs, scheme: runtime.NewScheme(), fail: fail}
	if err := errors.Join(clientgoscheme.AddToScheme(c.scheme), v1alpha1.AddToScheme(c.scheme)); err != nil {
		return nil, ctx, err
	}
	var err error
	if c.state, err = os.MkdirTemp("", "livedump-scale-"); err != nil {
		return nil, ctx, err
	}
	policy := c.file("audit.yaml", auditPolicy)
	c.environment = &envtest.Environment{Scheme: c.scheme, ControlPlaneStopTimeout: time.Minute}
	api := c.environment.ControlPlane.GetAPIServer()
	api.Out = c.audit
	api.Configure().Set("audit-policy-file", policy).Set("audit-log-path", "-").Set("authorization-mode", "RBAC").
		// Thousands of requests at a time are what is measured, not how they are put off.
		Set("max-requests-inflight", "2000").Set("max-mutating-requests-inflight", "1000")
	c.environment.ControlPlane.Etcd = &envtest.Etcd{}
	c.environment.ControlPlane.Etcd.Configure().Set("unsafe-no-fsync", "true")
	say("starting etcd and the API server")
	if c.config, err = c.environment.Start(); err != nil {
		return c, ctx, fmt.Errorf("starting the API server: %w", err)
	}
	c.config.QPS = -1
	if c.admin, err = client.New(c.config, client.Options{Scheme: c.scheme}); err != nil {
		return c, ctx, err
	}
	return c, ctx, c.startServers(ctx, o)
}

func (c *scaleCluster) startServers(ctx context.Context, o options) error {
	user, err := c.environment.AddUser(envtest.User{Name: "bench", Groups: []string{"system:masters"}}, c.config)
	if err != nil {
		return err
	}
	kubeconfig, err := user.KubeConfig()
	if err != nil {
		return err
	}
	adminConfig := c.file("admin.kubeconfig", string(kubeconfig))
	for _, name := range []string{releaseNamespace, dumpNamespace} {
		if err := c.admin.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	tools := cluster.Tools{Root: "."}
	helm, err := tools.Path("helm")
	if err != nil {
		return err
	}
	install := exec.CommandContext(ctx, helm, "install", "livedump", "charts/livedump", "--namespace="+releaseNamespace, "--set=namespaces={"+dumpNamespace+"}")
	install.Env = append(os.Environ(), "KUBECONFIG="+adminConfig, "HOME="+c.state)
	if out, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("helm install: %w: %s", err, out)
	}
	for _, server := range []struct {
		tool string
		args []string
	}{
		{"kube-controller-manager", []string{"--kubeconfig=" + adminConfig, "--controllers=daemonset-controller", "--leader-elect=false", "--secure-port=0",
			"--kube-api-qps=500", "--kube-api-burst=1000", "--concurrent-daemonset-syncs=4"}},
		{"kube-scheduler", []string{"--config=" + c.file("scheduler.yaml", "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"+
			"leaderElection: {leaderElect: false}\nclientConnection: {kubeconfig: "+adminConfig+", qps: 1000, burst: 2000}\n"), "--secure-port=0"}},
		{"kwok", []string{"--kubeconfig=" + adminConfig, "--manage-all-nodes", "--node-lease-duration-seconds=0", "--config=" + c.file("stages.yaml", kwokStages)}},
	} {
		path, err := tools.Path(server.tool)
		if err != nil {
			return err
		}
		if _, err := c.startProcess(ctx, server.tool, exec.Command(path, server.args...)); err != nil {
			return err
		}
	}
	token, err := c.token(ctx, controllerAccount, nil)
	if err != nil {
		return err
	}
	command := exec.Command(o.controller, "--namespaces="+dumpNamespace, "--holder-image=example.test/controller:1",
		"--agent-selector=app.kubernetes.io/name=livedump,app.kubernetes.io/instance=livedump,app.kubernetes.io/component=agent",
		// There is one controller, and on a busy machine it must not end over a lease that was renewed late.
		"--leader-elect=false", "--metrics-bind-address=0", "--health-probe-bind-address=0", "--max-concurrent-dumps="+strconv.Itoa(o.maxConcurrent))
	command.Env = append(os.Environ(), "POD_NAMESPACE="+releaseNamespace, "KUBECONFIG="+c.kubeconfig("controller", token))
	if c.controller, err = c.startProcess(ctx, "controller", command); err != nil {
		return err
	}
	say("chart installed; scheduler, DaemonSet controller, kwok and the controller run")
	return nil
}

// startProcess starts a server whose end ends the run.
func (c *scaleCluster) startProcess(ctx context.Context, name string, command *exec.Cmd) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(c.logs, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	c.processes = append(c.processes, command)
	go func() {
		err := command.Wait()
		if ctx.Err() == nil {
			c.fail(fmt.Errorf("%s ended: %v; see %s", name, err, log.Name()))
		}
	}()
	return command, nil
}

func (c *scaleCluster) stop() error {
	c.fail(errors.New("the run is over"))
	for _, p := range c.processes {
		_ = p.Process.Kill()
	}
	return errors.Join(c.environment.Stop(), os.RemoveAll(c.state))
}

func (c *scaleCluster) file(name, text string) string {
	path := filepath.Join(c.state, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		panic(err) // a directory of our own
	}
	return path
}

// token of an account of the release, bound to a pod as the kubelet binds it, or to nothing.
func (c *scaleCluster) token(ctx context.Context, account string, pod *corev1.Pod) (string, error) {
	hours := int64(24 * 3600)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hours}}
	if pod != nil {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	owner := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: releaseNamespace, Name: account}}
	if err := c.admin.SubResource("token").Create(ctx, owner, request); err != nil {
		return "", fmt.Errorf("token of %s: %w", account, err)
	}
	return request.Status.Token, nil
}

func (c *scaleCluster) kubeconfig(name, token string) string {
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: c.config.Host, CertificateAuthorityData: c.config.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	text, err := clientcmd.Write(*config)
	if err != nil {
		panic(err) // nothing in it can fail to be written
	}
	return c.file(name+".kubeconfig", string(text))
}

// controllerUse is the memory of the controller's process, at most and now, and its CPU time, as the kernel counted them.
func (c *scaleCluster) controllerUse() (most, now, cpu float64, err error) {
	proc := filepath.Join("/proc", strconv.Itoa(c.controller.Process.Pid))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return 0, 0, 0, fmt.Errorf("the controller's memory: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		switch {
		case name == "VmHWM" && err == nil:
			most = kib / 1024
		case name == "VmRSS" && err == nil:
			now = kib / 1024
		}
	}
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return 0, 0, 0, fmt.Errorf("the controller's CPU time: %w", err)
	}
	// After the name, which is in parentheses: state is field 3, utime and stime are 14 and 15, in hundredths of a second.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 || most == 0 {
		return 0, 0, 0, fmt.Errorf("the controller's process: not understood: %s", stat)
	}
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("the controller's CPU time: %w", err)
		}
		cpu += ticks / 100
	}
	return most, now, cpu, nil
}
