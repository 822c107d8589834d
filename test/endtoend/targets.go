// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/test/cluster"
)

// otherTargets makes a dump to each kind of target that is no raw device, and compares what lies there with what the LiveDump
// says.
func (b *Bench) otherTargets(ctx context.Context) error {
	for _, c := range []struct {
		what string
		run  func(context.Context) error
	}{
		{"a file in a claim with a file system", b.dumpToFile},
		{"an object in an S3 store", b.dumpToObject},
		{"a receiver, over TLS", b.dumpToReceiver},
	} {
		b.Step("  to %s", c.what)
		if err := c.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		if err := b.AwaitCleanNode(ctx); err != nil {
			return err
		}
	}
	return nil
}

// dumpAndRead makes a dump with the target, has found bring what lies there, and reads it.
func (b *Bench) dumpAndRead(ctx context.Context, name string, target livedumpv1alpha1.Target, found func() (string, error)) error {
	if err := b.createWith(ctx, name, NodeName, "", func(s *livedumpv1alpha1.LiveDumpSpec) { s.Target = target }); err != nil {
		return err
	}
	dump, err := b.AwaitSuccess(ctx, name)
	if err != nil {
		return err
	}
	file, err := found()
	if err != nil {
		return err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	result := dump.Status.Result
	if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != result.SHA256 || int64(len(content)) != result.SizeBytes {
		return fmt.Errorf("%d bytes with the SHA-256 %x are there, the LiveDump says %d and %s", len(content), sum, result.SizeBytes, result.SHA256)
	}
	verdict, err := b.livedump(ctx, "verify", file)
	if err != nil {
		return err
	}
	log, err := b.livedump(ctx, "dmesg", file)
	if err != nil {
		return err
	}
	if !bytes.Contains([]byte(log), []byte("Linux version "+b.kernel.Release)) {
		return errors.New("the kernel's log in the dump does not begin as it should")
	}
	b.Step("  %s: what is there has the SHA-256 of the result; %s", result.Format, lineWith(verdict, "good"))
	return b.delete(ctx, name)
}

// fileMount is where the node has the file system of a claim.
const fileMount = "/mnt/dump-files"

// filesClaim is a claim with the file system.
const filesClaim = "dump-files"

// withFiles makes a file system on the node's second disk, and a volume and a claim of it, until do has returned.
func (b *Bench) withFiles(ctx context.Context, do func() error) (err error) {
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", b.SecondTarget).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	// The node has read the disk's beginning when it booted.
	if _, err := b.Guest.Run(ctx, "sh", "-ec", "blockdev --flushbufs /dev/vdd; mkdir -p "+fileMount+"; mount -t ext4 /dev/vdd "+fileMount); err != nil {
		return err
	}
	defer func() { // the disk is to be empty for others
		_, ended := b.Guest.Run(ctx, "sh", "-ec", "umount "+fileMount+"; dd if=/dev/zero of=/dev/vdd bs=1M count=16 conv=fsync")
		err = errors.Join(err, ended)
	}()
	size := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(secondTargetMiB<<20, resource.BinarySI)}
	mode := corev1.PersistentVolumeFilesystem
	volume, claim := localVolume("node-1-dump-files", fileMount, size, filesClaim), blockClaim(filesClaim, "node-1-dump-files", size)
	volume.Spec.VolumeMode, claim.Spec.VolumeMode = &mode, &mode
	for _, object := range []client.Object{volume, claim} {
		if err := b.Client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %s: %w", object.GetName(), err)
		}
		defer func() { err = errors.Join(err, b.Client.Delete(ctx, object)) }()
	}
	return do()
}

func (b *Bench) dumpToFile(ctx context.Context) (err error) {
	const name = "to-a-file"
	target := livedumpv1alpha1.Target{PersistentVolumeClaim: &livedumpv1alpha1.PersistentVolumeClaimTarget{ClaimName: filesClaim}}
	found := func() (string, error) {
		if err := b.AwaitCleanNode(ctx); err != nil {
			return "", err
		}
		left, err := b.Guest.Run(ctx, "sh", "-ec", "cd "+fileMount+"; ls")
		if err != nil || left.Stdout != "lost+found\n"+name+".kdump\n" {
			return "", fmt.Errorf("in the volume are %q, %w", left.Stdout, err)
		}
		// As a user gets it.
		file := filepath.Join(b.Options.Out, name+".kdump")
		out, err := b.fetchCommand(ctx, b.Kubeconfig, name, file).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("fetching: %w: %s", err, out)
		}
		return file, b.AwaitCleanNode(ctx) // of the reader pod, for the mount is to go
	}
	return b.withFiles(ctx, func() error { return b.dumpAndRead(ctx, name, target, found) })
}

// serve runs a server of this machine until stop is called, and waits until it listens.
func (b *Bench) serve(ctx context.Context, address string, argv ...string) (stop func(), err error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	var why error
	go func() {
		why = cmd.Wait()
		close(ended)
	}()
	stop = func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	err = cluster.Poll(ctx, filepath.Base(argv[0])+" at "+address, time.Minute, func(ctx context.Context) (bool, string, error) {
		select {
		case <-ended:
			return false, "", cluster.Final{Err: fmt.Errorf("it ended: %w: %s", why, said.String())}
		default:
		}
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return false, err.Error(), nil
		}
		return true, "", c.Close()
	})
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

func (b *Bench) dumpToObject(ctx context.Context) (err error) {
	const name, bucket, port = "to-an-object", "dumps", "9443"
	const keyID, key = "livedump-test", "not a secret at all"
	binary, err := cluster.Tools{Root: b.Options.Root}.Path("versitygw")
	if err != nil {
		return err
	}
	cert, certKey, ca, err := b.Certificate("object-store")
	if err != nil {
		return err
	}
	data, metadata := filepath.Join(b.Options.State, "objects"), filepath.Join(b.Options.State, "metadata-of-objects")
	if err := errors.Join(os.MkdirAll(filepath.Join(data, bucket), 0o700), os.MkdirAll(metadata, 0o700)); err != nil {
		return err
	}
	stop, err := b.serve(ctx, "127.0.0.1:"+port, binary, "--quiet", "--access", keyID, "--secret", key, "--port", "127.0.0.1:"+port,
		"--cert", cert, "--key", certKey, "posix", "--sidecar", metadata, data)
	if err != nil {
		return err
	}
	defer stop()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: "dump-store"},
		StringData: map[string]string{"accessKeyID": keyID, "secretAccessKey": key, "ca.crt": string(ca)}}
	if err := b.Client.Create(ctx, secret); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Client.Delete(ctx, secret)) }()
	target := livedumpv1alpha1.Target{ObjectStorage: &livedumpv1alpha1.ObjectStorageTarget{
		Endpoint: "https://" + net.JoinHostPort(cluster.HostFromGuest, port), Bucket: bucket, KeyPrefix: "node-1/", CredentialsSecretName: secret.Name}}
	return b.dumpAndRead(ctx, name, target, func() (string, error) {
		objects, err := filepath.Glob(filepath.Join(data, bucket, "node-1", "*"))
		if err != nil || len(objects) != 1 {
			return "", fmt.Errorf("objects %v, %w: want one", objects, err)
		}
		return objects[0], nil
	})
}

func (b *Bench) dumpToReceiver(ctx context.Context) error {
	const name, port = "to-a-receiver", "9300"
	cert, certKey, ca, err := b.Certificate("receiver")
	if err != nil {
		return err
	}
	file := filepath.Join(b.Options.Out, name+".flat")
	stop, err := b.serve(ctx, "127.0.0.1:"+port, filepath.Join(b.Options.Root, "bin/livedump"), "receive", "--listen", "127.0.0.1:"+port,
		"--cert", cert, "--key", certKey, file)
	if err != nil {
		return err
	}
	defer stop()
	target := livedumpv1alpha1.Target{Stream: &livedumpv1alpha1.StreamTarget{Address: net.JoinHostPort(cluster.HostFromGuest, port),
		TLS: livedumpv1alpha1.StreamTLS{CABundle: string(ca)}}}
	return b.dumpAndRead(ctx, name, target, func() (string, error) { return file, nil })
}
