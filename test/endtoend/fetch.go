// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/test/cluster"
)

// fetcherRole is what the documentation says that fetching takes, and no more.
const fetcherRole = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: dump-fetcher, namespace: ` + Namespace + `}
rules:
  - {apiGroups: [livedump.io], resources: [livedumps], verbs: [get, list]}
  - {apiGroups: [""], resources: [pods], verbs: [create, get, delete]}
  - {apiGroups: [""], resources: [pods/exec], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: dump-viewer, namespace: ` + Namespace + `}
rules:
  - {apiGroups: [livedump.io], resources: [livedumps], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: dump-fetcher, namespace: ` + Namespace + `}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: dump-fetcher}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: fetcher}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: dump-viewer, namespace: ` + Namespace + `}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: dump-viewer}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: viewer}]
`

// fetch makes an encrypted dump and fetches it: interrupted and resumed, by a user with just the rights that it
// takes. Users without them are refused, and nothing of it stays in the cluster.
func (b *Bench) fetch(ctx context.Context) error {
	const name = "to-be-fetched"
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	key := filepath.Join(b.Options.Out, "key.txt")
	if err := os.WriteFile(key, []byte(id.String()+"\n"), 0o600); err != nil {
		return err
	}
	if err := b.Client.Create(ctx, &livedumpv1alpha1.LiveDump{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name},
		Spec: livedumpv1alpha1.LiveDumpSpec{
			NodeName:   NodeName,
			Target:     livedumpv1alpha1.Target{PersistentVolumeClaim: &livedumpv1alpha1.PersistentVolumeClaimTarget{ClaimName: ClaimName}},
			Encryption: &livedumpv1alpha1.Encryption{Recipients: []string{id.Recipient().String()}},
		},
	}); err != nil {
		return err
	}
	if _, err := b.Kubectl(ctx, strings.NewReader(fetcherRole), "apply", "-f", "-"); err != nil {
		return err
	}
	dump, err := b.AwaitSuccess(ctx, name)
	if err != nil {
		return err
	}
	if dump.Status.Result.Encryption != "age" {
		return fmt.Errorf("the result says that the encryption is %q", dump.Status.Result.Encryption)
	}
	if err := b.AwaitCleanNode(ctx); err != nil {
		return err
	}
	onDisk := filepath.Join(b.Options.Out, "encrypted-on-disk.age")
	if sum, err := copyDump(b.Target, onDisk, dump.Status.Result.SizeBytes); err != nil || sum != dump.Status.Result.SHA256 {
		return errors.Join(fmt.Errorf("what lies on the disk has the SHA-256 %s, the result says %s", sum, dump.Status.Result.SHA256), err)
	}
	if err := b.nothingInClear(onDisk); err != nil {
		return err
	}
	if err := b.refusedFetches(ctx, name); err != nil {
		return err
	}

	fetcher, err := b.User("fetcher")
	if err != nil {
		return err
	}
	file := filepath.Join(b.Options.Out, "fetched.age")
	if err := b.interruptedFetch(ctx, fetcher, name, file); err != nil {
		return err
	}
	out, err := b.fetchCommand(ctx, fetcher, name, file).Output()
	if err != nil {
		return fmt.Errorf("fetching: %w%s", err, stderrOf(err))
	}
	var result struct {
		Bytes     int64
		ResumedAt int64
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("fetch --json printed %q: %w", out, err)
	}
	if result.ResumedAt <= 0 || result.Bytes != dump.Status.Result.SizeBytes {
		return fmt.Errorf("fetch --json printed %s, so it did not go on where it had been interrupted", out)
	}
	if err := sameFiles(file, onDisk); err != nil {
		return err
	}
	b.Step("fetched %d bytes, resumed at %d: they are those on the disk", result.Bytes, result.ResumedAt)
	if err := b.AwaitCleanNode(ctx); err != nil { // of the reader pod
		return err
	}
	plain := filepath.Join(b.Options.Out, "fetched.kdump")
	if _, err := b.livedump(ctx, "decrypt", "-i", key, file, plain); err != nil {
		return err
	}
	verdict, err := b.livedump(ctx, "verify", plain)
	if err != nil {
		return err
	}
	b.Step("decrypted: %s", lineWith(verdict, "good"))

	// As a plugin of kubectl, by an administrator, for whom the image is found.
	again := filepath.Join(b.Options.Out, "fetched-by-kubectl.age")
	kubectl := exec.CommandContext(ctx, filepath.Join(b.Options.Root, "bin/kubectl-livedump"), "fetch", name, "-n", Namespace, "-o", again)
	kubectl.Env = append(os.Environ(), "KUBECONFIG="+b.Kubeconfig)
	if said, err := kubectl.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl-livedump fetch: %w: %s", err, said)
	}
	if err := sameFiles(again, onDisk); err != nil {
		return err
	}
	if err := b.delete(ctx, name); err != nil {
		return err
	}
	return b.AwaitCleanNode(ctx)
}

// nothingInClear looks for what every dump has in clear.
func (b *Bench) nothingInClear(file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, text := range []string{"VMCOREINFO", "OSRELEASE=", "KDUMP   ", b.kernel.Release, "Linux version"} {
		if bytes.Contains(content, []byte(text)) {
			return fmt.Errorf("the encrypted dump has %q in clear", text)
		}
	}
	b.Step("the %d bytes on the disk hold nothing in clear", len(content))
	return nil
}

func (b *Bench) fetchCommand(ctx context.Context, kubeconfig, name, file string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(b.Options.Root, "bin/livedump"), "fetch", name, "--kubeconfig", kubeconfig, "-n", Namespace,
		"--image", controllerImage+":"+imageTag, "-o", file, "--json")
}

// refusedFetches: who may not, learns what is missing, and there is no file.
func (b *Bench) refusedFetches(ctx context.Context, name string) error {
	file := filepath.Join(b.Options.Out, "refused.age")
	for user, says := range map[string]string{
		"nobody": "livedumps",   // cannot even read LiveDumps
		"viewer": "create pods", // can, and nothing else
	} {
		kubeconfig, err := b.User(user)
		if err != nil {
			return err
		}
		said, err := b.fetchCommand(ctx, kubeconfig, name, file).CombinedOutput()
		if err == nil || !bytes.Contains(said, []byte("not allowed")) || !bytes.Contains(said, []byte(says)) {
			return fmt.Errorf("user %s fetched a dump, or was refused without the word %q: %w: %s", user, says, err, said)
		}
		b.Step("  user %s: %s", user, lineWith(string(said), "not allowed"))
	}
	left, err := filepath.Glob(file + "*")
	if err != nil || len(left) > 0 {
		return fmt.Errorf("refused fetches left %v (%w)", left, err)
	}
	return nil
}

// interruptedFetch interrupts a fetch in the middle.
func (b *Bench) interruptedFetch(ctx context.Context, kubeconfig, name, file string) error {
	var said bytes.Buffer
	cmd := b.fetchCommand(ctx, kubeconfig, name, file)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	err := cluster.Poll(ctx, "a part of the dump", 3*time.Minute, func(context.Context) (bool, string, error) {
		select {
		case err := <-ended:
			return false, "", cluster.Final{Err: fmt.Errorf("the fetch ended before it was interrupted: %w: %s", err, said.String())}
		default:
		}
		parts, err := filepath.Glob(file + ".*.partial")
		if err != nil || len(parts) == 0 {
			return false, "there is no file yet", err
		}
		i, err := os.Stat(parts[0])
		return err == nil && i.Size() > 0, "it is empty", err
	})
	if err != nil {
		return err
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	if err := <-ended; err == nil {
		return fmt.Errorf("the fetch was interrupted and says that it succeeded")
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("an interrupted fetch left %s", file)
	}
	b.Step("  interrupted: %s", strings.TrimSpace(lineWith(said.String(), "goes on there")))
	return b.AwaitCleanNode(ctx)
}

func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return ": " + string(exit.Stderr)
	}
	return ""
}

func sameFiles(a, b string) error {
	x, err := os.Open(a)
	if err != nil {
		return err
	}
	defer x.Close()
	y, err := os.Open(b)
	if err != nil {
		return err
	}
	defer y.Close()
	one, two := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := 0; ; off += len(one) {
		n, err := io.ReadFull(x, one)
		m, err2 := io.ReadFull(y, two)
		if !bytes.Equal(one[:n], two[:m]) {
			return fmt.Errorf("%s and %s differ after %d bytes", a, b, off)
		}
		if err != nil || err2 != nil {
			return nil
		}
	}
}
