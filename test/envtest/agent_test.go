// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/module"
	"livedump.io/internal/session"
	"livedump.io/internal/session/sessiontest"
	dumptarget "livedump.io/internal/target"
	nodeagent "livedump.io/node-agent/agent"
	"livedump.io/node-agent/engine"
)

// process is an agent's process: all of it is real but the kernel's session and the device, which is a file. For each of several
// claims it is one with the claim's name behind it.
type process struct {
	agent  *nodeagent.Agent
	memory *sessiontest.Memory
	target string
	// stop ends the process as SIGKILL would: nothing is reported any more.
	stop func()
}

// fileTarget is a file instead of a device.
type fileTarget struct{ *os.File }

func (fileTarget) Size() int64      { return 64 << 20 }
func (fileTarget) Describe() string { return "/dev/test (a file)" }

func (fileTarget) Abilities() dumptarget.Abilities { return dumptarget.Abilities{RandomAccess: true} }

func (fileTarget) Commit(_ context.Context, size int64) (dumptarget.Receipt, error) {
	return dumptarget.Receipt{Bytes: size}, nil
}

func (fileTarget) Abort(error) error { return nil }

// openFiles opens the file, or one for each of several claims.
func openFiles(dump *v1alpha1.LiveDump, path string) engine.Open {
	open := func(path string) engine.Open {
		return func(context.Context) (dumptarget.Target, error) {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
			return fileTarget{f}, err
		}
	}
	if !dump.Spec.Target.Split() {
		return open(path)
	}
	var opens []engine.Open
	for _, claim := range dump.Spec.Target.PersistentVolumeClaims {
		opens = append(opens, open(path+"."+claim.ClaimName))
	}
	return engine.Parts(kdump.Session{}, opens...)
}

// unplugged stops reaching the API server with its process.
type unplugged struct {
	nodeagent.StatusWriter
	process context.Context
}

func (u unplugged) Write(ctx context.Context, p nodeagent.Part) error {
	if u.process.Err() != nil {
		return errors.New("the process is dead")
	}
	return u.StatusWriter.Write(ctx, p)
}

// runProcess starts the real agent with the rights and the token of the agent's pod on the node.
// onEnd, if not nil, is called when a dump is told to end.
func (a *agent) runProcess(memory *sessiontest.Memory, target string, onEnd func()) *process {
	w := a.w
	w.t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{
		Kind: "Pod", APIVersion: "v1", Name: a.pod.Name, UID: a.pod.UID}}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: releaseNamespace, Name: agentAccount}}
	w.must(admin.SubResource("token").Create(w.ctx, account, request))
	config := rest.AnonymousClientConfig(adminConfig)
	config.BearerToken = request.Status.Token
	manager, err := ctrl.NewManager(config, ctrl.Options{Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"},
		// Several processes in one, so names of controllers are not unique.
		Controller: ctrlconfig.Controller{SkipNameValidation: ptr.To(true)},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{&v1alpha1.LiveDump{}: {
			Field: fields.OneTermEqualSelector("spec.nodeName", w.node)}}}})
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{memory: memory, target: target, stop: cancel}
	log := slog.New(slog.DiscardHandler)
	if a.log != nil {
		log = a.log
	}
	p.agent = &nodeagent.Agent{
		Reader: manager.GetClient(), Status: unplugged{nodeagent.APIStatus{Client: manager.GetClient()}, ctx},
		NodeName: w.node, BootID: "boot-1",
		Dump: func(dumpCtx context.Context, dump *v1alpha1.LiveDump, o engine.Options) (*engine.Report, error) {
			e := engine.Engine{
				OpenTarget:  openFiles(dump, target),
				LoadModule:  func() (module.Outcome, error) { return module.Outcome{How: module.OutcomeLoaded}, nil },
				OpenSession: func(context.Context) (session.Session, error) { return memory.NewSession() },
				RAM:         func() ([]kdump.PFNRange, error) { return []kdump.PFNRange{{Start: 0, End: 1 << 20}}, nil },
				Now:         time.Now, Log: log,
			}
			merged, cancelMerged := context.WithCancelCause(dumpCtx)
			defer cancelMerged(nil)
			defer context.AfterFunc(ctx, func() { cancelMerged(errors.New("killed")) })()
			if onEnd != nil {
				defer context.AfterFunc(merged, onEnd)()
			}
			return e.Dump(merged, o)
		},
		Unload:       func() error { return nil },
		SessionAlive: func() (bool, error) { return memory.Open(), nil },
		// These sessions end with their process.
		Session: func() (string, bool, error) { return "", false, nil },
		Abandon: func(context.Context, string) (bool, error) { return false, nil },
		Clock:   clock.RealClock{}, Log: log,
	}
	w.must(p.agent.SetupWithManager(manager))
	var running sync.WaitGroup
	running.Go(func() {
		if err := manager.Start(ctx); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(func() { cancel(); running.Wait() })
	return p
}

// nodeMemory is a small machine.
func nodeMemory() *sessiontest.Memory {
	m := &sessiontest.Memory{Pages: map[uint64][]byte{}, Classes: map[uint64]session.Class{}, CPUs: 2,
		VMCoreInfo: "OSRELEASE=6.1.0-test\nPAGESIZE=4096\nNUMBER(phys_base)=16777216\n",
		Utsname:    session.Utsname{Sysname: "Linux", Nodename: "n", Release: "6.1.0-test", Version: "#1 SMP", Machine: "x86_64"}}
	for pfn := uint64(256); pfn < 2256; pfn++ {
		m.Pages[pfn] = []byte(fmt.Sprint("page ", pfn))
		if pfn%10 == 0 {
			m.Classes[pfn] = session.ClassFree
		}
	}
	return m
}

// hold lets the session stop in the middle of its pages until release is called.
func hold(t *testing.T, m *sessiontest.Memory) (release func()) {
	t.Helper()
	free := make(chan struct{})
	m.OnNext = func(reported uint64) {
		if reported > 0 {
			<-free
		}
	}
	release = sync.OnceFunc(func() { close(free) })
	t.Cleanup(release)
	return release
}

func (w *world) awaitSession(dump *v1alpha1.LiveDump, m *sessiontest.Memory) {
	w.t.Helper()
	w.await(dump, v1alpha1.ConditionCaptured, metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	eventually(w.t, func() error {
		if !m.Frozen() {
			return errors.New("memory is not frozen")
		}
		return nil
	})
}

// Controller and agent together, each with its own rights.
func TestAgentMakesDump(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	m := nodeMemory()
	p := w.startAgent().runProcess(m, filepath.Join(t.TempDir(), "target"), nil)
	w.runHolder(dump)
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, v1alpha1.ReasonComplete)
	d := w.get(dump)
	if d.Status.Session != string(d.UID) || d.Status.Progress.Percent != 100 {
		t.Errorf("session %q of LiveDump %s, progress %+v", d.Status.Session, d.UID, d.Status.Progress)
	}
	r := d.Status.Result
	if r == nil || r.PagesDumped != 1800 || r.PagesLost != 0 || len(r.SHA256) != 64 || r.Format != format.Kdump.String() || r.FreezeMicroseconds != 1500 || len(r.PagesByClass) != 10 {
		t.Fatalf("result: %+v", r)
	}
	for _, c := range d.Status.Conditions {
		if c.Status != metav1.ConditionTrue {
			t.Errorf("condition %s is %s (%s: %s) after success", c.Type, c.Status, c.Reason, c.Message)
		}
	}
	on, err := kdump.Open(p.target)
	w.must(err)
	defer on.Close()
	if on.Pages() != 1800 || on.Record().Session.String() != string(d.UID) {
		t.Errorf("%d pages on the target, session %s", on.Pages(), on.Record().Session)
	}
	w.awaitReleased(dump)
	w.awaitLabel(false)
}

func TestAgentIsCanceled(t *testing.T) {
	for name, end := range map[string]func(w *world, dump *v1alpha1.LiveDump){
		"canceled": func(w *world, dump *v1alpha1.LiveDump) {
			w.must(admin.Patch(w.ctx, dump, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"desiredState":"Cancel"}}`))))
			c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonCanceled)
			if strings.Contains(c.Message, "did not confirm") {
				w.t.Errorf("message: %q", c.Message)
			}
		},
		"deleted": func(w *world, dump *v1alpha1.LiveDump) {
			w.must(admin.Delete(w.ctx, dump))
			w.awaitGone(dump)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dump := w.create("dump", nil)
			m := nodeMemory()
			release := hold(t, m)
			p := w.startAgent().runProcess(m, filepath.Join(t.TempDir(), "target"), release)
			w.runHolder(dump)
			w.awaitSession(dump, m)
			end(w, dump.DeepCopy())
			if m.Frozen() || m.Open() {
				t.Error("the LiveDump ended before the session did")
			}
			if _, err := kdump.Open(p.target); !errors.Is(err, kdump.ErrFailed) {
				t.Errorf("the target: got %v, want %v", err, kdump.ErrFailed)
			}
		})
	}
}

// A process that dies leaves a LiveDump that the next one must not take for its own.
func TestNextAgentReportsLoss(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	m := nodeMemory()
	release := hold(t, m)
	a := w.startAgent()
	first := a.runProcess(m, filepath.Join(t.TempDir(), "target"), release)
	w.runHolder(dump)
	w.awaitSession(dump, m)
	first.stop()
	eventually(t, func() error {
		if m.Open() {
			return errors.New("the session is still open")
		}
		return nil
	})
	second := nodeMemory()
	a.runProcess(second, filepath.Join(t.TempDir(), "target"), nil)
	c := w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonAgentLost)
	if !strings.Contains(c.Message, "no valid dump") {
		t.Errorf("message: %q", c.Message)
	}
	if second.Sessions() != 0 {
		t.Error("the next process made a dump for a LiveDump that was lost")
	}
	w.awaitReleased(dump)
}
