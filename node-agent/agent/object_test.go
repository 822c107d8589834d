// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/target"
	"livedump.io/internal/target/object/objecttest"
	"livedump.io/node-agent/engine"
)

// kubeletDir is a kubelet's directory with the holder's credentials, laid out as a kubelet does.
func kubeletDir(t *testing.T, uid string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	volume := filepath.Join(dir, "pods", uid, "volumes/kubernetes.io~projected", v1alpha1.CredentialsVolume)
	if err := os.MkdirAll(filepath.Join(volume, "..2026"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..2026", filepath.Join(volume, "..data")); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(volume, "..2026", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestObjectTarget goes from the spec and the kubelet's directory to a real store.
func TestObjectTarget(t *testing.T) {
	store := objecttest.Start(t, time.Now().Add(time.Hour))
	store.MakeBucket(t, "dumps")
	good := map[string]string{v1alpha1.AccessKeyID: objecttest.AccessKeyID + "\n", v1alpha1.SecretAccessKey: objecttest.SecretAccessKey,
		v1alpha1.CACertificate: string(store.CA)}
	dump := newDump("d")
	dump.Spec.Target = v1alpha1.Target{ObjectStorage: &v1alpha1.ObjectStorageTarget{Endpoint: store.Endpoint, Bucket: "dumps", KeyPrefix: "node-1/",
		CredentialsSecretName: "store"}}
	dump.Spec.Encryption = &v1alpha1.Encryption{}
	dump.Status.Target = v1alpha1.TargetStatus{HolderPodUID: "uid"}
	if !ready(dump) {
		t.Error("a mounted Secret is all that is needed")
	}
	node := engine.Node{Host: blockdev.LocalHost, Log: slog.New(slog.DiscardHandler)}
	tg, err := Target(node, kubeletDir(t, "uid", good), dump, false)(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	content := []byte("a dump, encrypted and flattened")
	if _, err := tg.(target.Stream).Write(content); err != nil {
		t.Fatal(err)
	}
	if _, err := tg.Commit(context.Background(), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if got, err := store.Object("dumps", "node-1/d-"+string(dump.UID)+".flat.age"); err != nil || string(got) != string(content) {
		t.Errorf("%q, %v", got, err)
	}
	if err := tg.Close(); err != nil {
		t.Error(err)
	}

	// A process that comes after that of the upload says what is there, and begins no other.
	for name, c := range map[string]struct {
		change func(files map[string]string, d *v1alpha1.LiveDump)
		want   error
	}{
		"complete":   {func(map[string]string, *v1alpha1.LiveDump) {}, engine.ErrUnreported},
		"not there":  {func(_ map[string]string, d *v1alpha1.LiveDump) { d.Name = "other" }, engine.ErrNoDump},
		"not to see": {func(f map[string]string, _ *v1alpha1.LiveDump) { f[v1alpha1.SecretAccessKey] = "wrong" }, engine.ErrUnknown},
	} {
		d, files := dump.DeepCopy(), maps.Clone(good)
		c.change(files, d)
		_, err := Target(node, kubeletDir(t, "uid", files), d, true)(context.Background())
		if !errors.Is(err, c.want) || engine.Reason(err) != v1alpha1.ReasonAgentLost {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, err := store.Object("dumps", "node-1/d-"+string(dump.UID)+".flat.age"); err != nil || string(got) != string(content) {
		t.Errorf("%q, %v", got, err)
	}
	sent := dump.DeepCopy()
	sent.Spec.Target = v1alpha1.Target{Stream: &v1alpha1.StreamTarget{Address: "10.0.0.1:7000"}}
	if _, err := Target(node, t.TempDir(), sent, true)(context.Background()); !errors.Is(err, engine.ErrUnknown) || !strings.Contains(err.Error(), "10.0.0.1") {
		t.Errorf("a stream: %v", err)
	}

	for name, c := range map[string]struct {
		change func(files map[string]string, s *v1alpha1.ObjectStorageTarget)
		reason string
		says   string
	}{
		"no secret key": {func(f map[string]string, _ *v1alpha1.ObjectStorageTarget) { delete(f, v1alpha1.SecretAccessKey) }, v1alpha1.ReasonTargetNotFound, "secretAccessKey of Secret store"},
		"wrong secret":  {func(f map[string]string, _ *v1alpha1.ObjectStorageTarget) { f[v1alpha1.SecretAccessKey] = "wrong" }, v1alpha1.ReasonTargetInvalid, "refuses the credentials"},
		"no CA":         {func(f map[string]string, _ *v1alpha1.ObjectStorageTarget) { delete(f, v1alpha1.CACertificate) }, v1alpha1.ReasonTargetInvalid, "certificate"},
		"no bucket":     {func(_ map[string]string, s *v1alpha1.ObjectStorageTarget) { s.Bucket = "none" }, v1alpha1.ReasonTargetNotFound, "no such bucket"},
	} {
		t.Run(name, func(t *testing.T) {
			d := dump.DeepCopy()
			files := map[string]string{}
			for k, v := range good {
				files[k] = v
			}
			c.change(files, d.Spec.Target.ObjectStorage)
			_, err := Target(node, kubeletDir(t, "uid", files), d, false)(context.Background())
			if err == nil || engine.Reason(err) != c.reason || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, reason %s; want %s and %q", err, engine.Reason(err), c.reason, c.says)
			}
			if err != nil && strings.Contains(err.Error(), objecttest.SecretAccessKey) {
				t.Error("the error has the secret")
			}
		})
	}
}
