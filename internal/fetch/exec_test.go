// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/fetch/reader"
)

// fakeCluster is an API server that knows pods, with the real server side of exec.
type fakeCluster struct {
	device string // what lies on the claim

	mu      sync.Mutex
	denied  []string // "verb resource" that the user may not
	pods    map[string]*corev1.Pod
	deleted int
	execs   int
	// cut ends a connection after so many bytes, once for each entry; 0: not at all.
	cut []int
}

func (c *fakeCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	switch {
	case strings.HasSuffix(r.URL.Path, "/selfsubjectaccessreviews"):
		var review authorizationv1.SelfSubjectAccessReview
		_ = json.NewDecoder(r.Body).Decode(&review)
		a := review.Spec.ResourceAttributes
		review.Status.Allowed = !slices.Contains(c.denied, strings.Trim(a.Verb+" "+a.Resource+"/"+a.Subresource, "/"))
		answer(review)
	case strings.HasSuffix(r.URL.Path, "/pods") && r.Method == http.MethodPost:
		var pod corev1.Pod
		_ = json.NewDecoder(r.Body).Decode(&pod)
		pod.Name, pod.UID = pod.GenerateName+"x", "uid"
		c.pods[pod.Name] = &pod
		answer(pod)
	case strings.HasSuffix(r.URL.Path, "/exec"):
		c.mu.Unlock()
		c.exec(w, r)
		c.mu.Lock()
	case r.Method == http.MethodDelete && c.pods[name] != nil:
		c.deleted++
		answer(c.pods[name])
		delete(c.pods, name)
	case r.Method == http.MethodGet && c.pods[name] != nil:
		pod := c.pods[name].DeepCopy()
		pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}}
		answer(pod)
	default:
		w.WriteHeader(http.StatusNotFound)
		answer(metav1.Status{Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404, Message: r.Method + " " + r.URL.Path})
	}
}

func (c *fakeCluster) exec(w http.ResponseWriter, r *http.Request) {
	o, err := remotecommand.NewOptions(&http.Request{Form: map[string][]string{"output": {"1"}, "error": {"1"}}})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, c, "", "", "", r.URL.Query()["command"], o, time.Minute, time.Minute,
		[]string{"v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"})
}

// ExecInContainer runs the real program in this process.
func (c *fakeCluster) ExecInContainer(ctx context.Context, _, _, _ string, command []string, _ io.Reader, out, stderr io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if len(command) < 2 || command[0] != "/livedump-controller" || command[1] != "read" || command[len(command)-1] != devicePath {
		return errors.New("unexpected command " + strings.Join(command, " "))
	}
	c.mu.Lock()
	c.execs++
	limit := 0
	if c.execs > 1 && len(c.cut) > 0 { // the first is the look at the beginning
		limit, c.cut = c.cut[0], c.cut[1:]
	}
	c.mu.Unlock()
	args := slices.Clone(command[2:])
	args[len(args)-1] = c.device
	err := reader.Run(args, &cutter{w: out, left: limit, limited: limit > 0})
	if errors.Is(err, errCut) {
		return nil // as when the connection ends in between: less came than was asked for
	}
	if err != nil {
		_, _ = io.WriteString(stderr, err.Error())
		return utilexec.CodeExitError{Err: err, Code: 1}
	}
	return nil
}

var errCut = errors.New("cut off")

type cutter struct {
	w       io.Writer
	left    int
	limited bool
}

func (c *cutter) Write(b []byte) (int, error) {
	if c.limited && len(b) > c.left {
		n, _ := c.w.Write(b[:c.left])
		return n, errCut
	}
	c.left -= len(b)
	return c.w.Write(b)
}

// bench is a fetcher in a cluster with a dump of so many bytes on a claim.
func bench(t *testing.T, size int) (*Fetcher, *fakeCluster, *v1alpha1.LiveDump, Options) {
	t.Helper()
	content := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(content)
	device := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(device, append(content, "what else is on the device"...), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &fakeCluster{device: device, pods: map[string]*corev1.Pod{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	dump := succeeded()
	sum := sha256.Sum256(content)
	dump.Status.Result = &v1alpha1.Result{SizeBytes: int64(size), SHA256: hex.EncodeToString(sum[:])}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	config := &rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	f := &Fetcher{Config: config, Kube: kube, Client: fake.NewClientBuilder().WithScheme(scheme).WithObjects(dump).Build()}
	return f, c, dump, Options{Namespace: "ns", Name: "dump", File: filepath.Join(t.TempDir(), "out"), Image: "i", PodTimeout: time.Hour, PodWait: time.Minute,
		Say: t.Logf}
}

func (c *fakeCluster) wantNothingLeft(t *testing.T, pods int) {
	t.Helper()
	if len(c.pods) > 0 || c.deleted != pods {
		t.Errorf("%d pods are left, %d were deleted, want %d", len(c.pods), c.deleted, pods)
	}
}

func wantFile(t *testing.T, file string, size int, sum string) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if s := sha256.Sum256(got); len(got) != size || hex.EncodeToString(s[:]) != sum {
		t.Errorf("%d bytes with the SHA-256 %x", len(got), s)
	}
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestFetch(t *testing.T) {
	const size = 5<<20 + 123
	f, c, dump, o := bench(t, size)
	var last int64
	o.Progress = func(done, total int64) {
		if done < last || total != size {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}
	r, err := f.Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Resumed != 0 || r.Interruptions != 0 || r.Bytes != size || last != size {
		t.Errorf("%+v, progress %d", r, last)
	}
	wantFile(t, o.File, size, dump.Status.Result.SHA256)
	c.wantNothingLeft(t, 1)
	if _, err := f.Run(context.Background(), o); err == nil {
		t.Error("the file was replaced")
	}
}

// TestFetchPart fetches what lies on one claim of a split dump, by that part's size and checksum.
func TestFetchPart(t *testing.T) {
	const size = 1<<20 + 7
	f, c, dump, o := bench(t, size)
	dump.Spec.Target = splitDump().Spec.Target
	dump.Status.Target = splitDump().Status.Target
	dump.Status.Result = &v1alpha1.Result{SizeBytes: 2 * size, Parts: []v1alpha1.PartResult{
		{ClaimName: "one", SizeBytes: size, SHA256: dump.Status.Result.SHA256}, {ClaimName: "two", SizeBytes: size, SHA256: strings.Repeat("2", 64)}}}
	if err := f.Client.Update(context.Background(), dump); err != nil {
		t.Fatal(err)
	}
	o.Claim = "one"
	r, err := f.Run(context.Background(), o)
	if err != nil || r.Bytes != size || r.Parts != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	wantFile(t, o.File, size, r.SHA256)
	c.wantNothingLeft(t, 1)
}

func TestFetchGoesOnAfterInterruptions(t *testing.T) {
	const size = 6 << 20
	f, c, dump, o := bench(t, size)
	c.cut = []int{1 << 20, 1, 2 << 20}
	r, err := f.Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Interruptions != 3 {
		t.Errorf("%d interruptions", r.Interruptions)
	}
	wantFile(t, o.File, size, dump.Status.Result.SHA256)
	c.wantNothingLeft(t, 1)
}

func TestFetchIsResumed(t *testing.T) {
	const size = 8 << 20
	f, c, dump, o := bench(t, size)
	ctx, cancel := context.WithCancelCause(context.Background())
	o.Progress = func(done, _ int64) {
		if done >= 1<<20 {
			cancel(errors.New("interrupted"))
		}
	}
	if _, err := f.Run(ctx, o); err == nil || !strings.Contains(err.Error(), "the same command goes on there") {
		t.Fatalf("canceled: %v", err)
	}
	c.wantNothingLeft(t, 1)
	o.Progress = nil
	r, err := f.Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Resumed <= 0 {
		t.Errorf("%+v: nothing was there", r)
	}
	wantFile(t, o.File, size, dump.Status.Result.SHA256)
	c.wantNothingLeft(t, 2)
}

func TestFetchRefusals(t *testing.T) {
	t.Run("rights", func(t *testing.T) {
		f, c, _, o := bench(t, 1000)
		c.denied = []string{"create pods/exec", "delete pods"}
		if _, err := f.Run(context.Background(), o); !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "delete pods, create pods/exec") {
			t.Errorf("%v", err)
		}
		c.wantNothingLeft(t, 0)
	})
	t.Run("in use", func(t *testing.T) {
		f, c, dump, o := bench(t, 1000)
		rival := &v1alpha1.LiveDump{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rival", UID: "other"}, Spec: dump.Spec}
		if err := f.Client.Create(context.Background(), rival, &client.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Run(context.Background(), o); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "rival") {
			t.Errorf("%v", err)
		}
		c.wantNothingLeft(t, 0)
	})
	t.Run("a part in use", func(t *testing.T) {
		f, c, dump, o := bench(t, 1000)
		dump.Spec.Target = splitDump().Spec.Target
		dump.Status.Target, dump.Status.Result = splitDump().Status.Target, splitDump().Status.Result
		if err := f.Client.Update(context.Background(), dump); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Run(context.Background(), o); !errors.Is(err, ErrSplit) {
			t.Errorf("no claim named: %v", err)
		}
		o.Claim = "one"
		rival := &v1alpha1.LiveDump{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rival", UID: "other"}}
		rival.Spec.Target.PersistentVolumeClaims = []v1alpha1.PersistentVolumeClaimTarget{{ClaimName: "other"}, {ClaimName: "one"}}
		if err := f.Client.Create(context.Background(), rival, &client.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Run(context.Background(), o); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "rival") {
			t.Errorf("%v", err)
		}
		c.wantNothingLeft(t, 0)
	})
	t.Run("changed", func(t *testing.T) {
		f, c, _, o := bench(t, 1<<20)
		b, err := os.ReadFile(c.device)
		if err != nil {
			t.Fatal(err)
		}
		b[5000] ^= 1
		if err := os.WriteFile(c.device, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Run(context.Background(), o); !errors.Is(err, ErrChecksum) {
			t.Errorf("%v", err)
		}
		if _, err := os.Stat(o.File); !errors.Is(err, os.ErrNotExist) {
			t.Error("there is a file")
		}
		c.wantNothingLeft(t, 1)
	})
	t.Run("another dump", func(t *testing.T) {
		f, c, _, o := bench(t, 1<<20)
		b, err := os.ReadFile(c.device)
		if err != nil {
			t.Fatal(err)
		}
		copy(b, bytes.Join([][]byte{[]byte("age-encryption.org/v1"), []byte("-> livedump.io/v1 01020304-0000-0000-0000-000000000000 0000000000000004096 .\n")}, []byte("\n")))
		if err := os.WriteFile(c.device, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Run(context.Background(), o); !errors.Is(err, ErrOther) || !strings.Contains(err.Error(), "01020304") {
			t.Errorf("%v", err)
		}
		c.wantNothingLeft(t, 1)
	})
	t.Run("device gone", func(t *testing.T) {
		f, c, _, o := bench(t, 1000)
		c.device += "-gone"
		if _, err := f.Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("%v", err)
		}
		c.wantNothingLeft(t, 1)
	})
}
