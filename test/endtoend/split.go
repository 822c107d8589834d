// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
)

// split has a dump split among two disks while the workload runs. The parts are fetched as a user does, and judged.
// Then the agent of another one is killed in the middle, which nobody can go on with.
func (b *Bench) split(ctx context.Context) (err error) {
	for _, object := range secondDisk() {
		if err := b.Client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %s: %w", object.GetName(), err)
		}
		defer func() { err = errors.Join(err, b.Client.Delete(ctx, object)) }()
	}
	if err := b.StartWorkload(ctx); err != nil {
		return err
	}
	tables, err := b.PageTables(ctx)
	if err != nil {
		return err
	}
	const name = "split"
	observer := b.observe(ctx, name)
	defer observer.stop()
	if err := b.createSplit(ctx, name, secondClaim, nil); err != nil {
		return err
	}
	dump, err := b.AwaitSuccess(ctx, name)
	if err != nil {
		return err
	}
	before, after, err := observer.around(ctx, dump)
	if err != nil {
		return err
	}
	if err := errors.Join(b.AwaitCleanNode(ctx), b.ExpectSameTables(ctx, tables)); err != nil {
		return err
	}
	parts, err := b.fetchParts(ctx, dump, map[string]copier{ClaimName: ofDisk(b.Target), secondClaim: ofDisk(b.SecondTarget)})
	if err != nil {
		return err
	}
	if err := b.judge(ctx, parts, before, after); err != nil {
		return fmt.Errorf("the parts: %w", err)
	}
	whole := filepath.Join(b.Options.Out, "joined.kdump")
	if _, err := b.livedump(ctx, "convert", parts[1], parts[0], whole); err != nil {
		return err
	}
	verdict, err := b.livedump(ctx, "verify", whole)
	if err != nil {
		return err
	}
	b.Step("joined by livedump convert: %s", lineWith(verdict, "good"))
	if err := b.judge(ctx, []string{whole}, before, after); err != nil {
		return fmt.Errorf("joined by livedump: %w", err)
	}
	if err := errors.Join(b.lostInParts(ctx), b.EndWorkload(ctx)); err != nil {
		return err
	}
	return b.withFiles(ctx, func() error { return b.diskAndFile(ctx) })
}

// createSplit creates a LiveDump that is split among the first disk and another claim.
func (b *Bench) createSplit(ctx context.Context, name, other string, more func(*livedumpv1alpha1.LiveDumpSpec)) error {
	return b.createWith(ctx, name, NodeName, "", func(s *livedumpv1alpha1.LiveDumpSpec) {
		if more != nil {
			more(s)
		}
		s.Target = livedumpv1alpha1.Target{PersistentVolumeClaims: []livedumpv1alpha1.PersistentVolumeClaimTarget{{ClaimName: ClaimName}, {ClaimName: other}}}
	})
}

// fetchParts fetches each part, and compares it with what lies on the node, of which onNode makes a copy. A fetch that names no
// claim says what to do.
func (b *Bench) fetchParts(ctx context.Context, dump *livedumpv1alpha1.LiveDump, onNode map[string]copier) (files []string, err error) {
	out, err := b.fetchCommand(ctx, b.Kubeconfig, dump.Name, filepath.Join(b.Options.Out, "no-part")).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("--claim")) || !bytes.Contains(out, []byte(ClaimName)) {
		return nil, fmt.Errorf("a fetch of a split dump, without a claim: %w: %s", err, out)
	}
	total := int64(0)
	for _, part := range dump.Status.Result.Parts {
		file := filepath.Join(b.Options.Out, dump.Name+"-on-"+part.ClaimName+".kdump")
		fetch := b.fetchCommand(ctx, b.Kubeconfig, dump.Name, file)
		fetch.Args = append(fetch.Args, "--claim", part.ClaimName)
		if out, err := fetch.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("fetching the part on claim %s: %w: %s", part.ClaimName, err, out)
		}
		if sum, err := onNode[part.ClaimName](file+".on-node", part.SizeBytes); err != nil || sum != part.SHA256 {
			return nil, errors.Join(fmt.Errorf("the part on claim %s has the SHA-256 %s, the result says %s", part.ClaimName, sum, part.SHA256), err)
		}
		if err := sameFiles(file, file+".on-node"); err != nil {
			return nil, err
		}
		if _, err := b.livedump(ctx, "verify", file); err != nil {
			return nil, err
		}
		b.Step("claim %s has a part of %d bytes with the SHA-256 of the result (%s)", part.ClaimName, part.SizeBytes, part.Device)
		files, total = append(files, file), total+part.SizeBytes
	}
	if total != dump.Status.Result.SizeBytes {
		return nil, fmt.Errorf("the parts have %d bytes, the result says %d", total, dump.Status.Result.SizeBytes)
	}
	return files, b.AwaitCleanNode(ctx) // of the reader pods
}

// copier copies so many bytes of what lies on the node to a file, and returns their SHA-256.
type copier func(file string, size int64) (string, error)

// ofDisk copies from the beginning of a disk.
func ofDisk(image string) copier {
	return func(file string, size int64) (string, error) { return copyDump(image, file, size) }
}

// lostInParts kills the agent while it writes the parts.
func (b *Bench) lostInParts(ctx context.Context) error {
	const name = "split-and-killed"
	tables, err := b.PageTables(ctx)
	if err != nil {
		return err
	}
	if err := b.createSplit(ctx, name, secondClaim, slowly("8Mi")); err != nil {
		return err
	}
	dump, err := b.awaitPages(ctx, name)
	if err != nil {
		return err
	}
	if err := b.killAgent(ctx, dump); err != nil {
		return err
	}
	if dump, err = b.AwaitEnd(ctx, name); err != nil {
		return err
	}
	if err := expectFailed(dump, livedumpv1alpha1.ReasonAgentLost, "no valid dump"); err != nil {
		return err
	}
	if err := errors.Join(b.AwaitCleanNode(ctx), b.ExpectSameTables(ctx, tables)); err != nil {
		return err
	}
	for _, disk := range []string{b.Target, b.SecondTarget} {
		if err := b.expectNoDump(ctx, disk); err != nil {
			return err
		}
	}
	b.Step("the agent was killed: %s; neither disk has a part", summary(dump))
	return errors.Join(b.delete(ctx, name), b.delete(ctx, "split"))
}

// diskAndFile has a dump split among a disk and a file.
func (b *Bench) diskAndFile(ctx context.Context) error {
	const name = "disk-and-file"
	if err := b.createSplit(ctx, name, filesClaim, nil); err != nil {
		return err
	}
	dump, err := b.AwaitEnd(ctx, name)
	if err != nil {
		return err
	}
	if err := errors.Join(ExpectSucceeded(dump), b.AwaitCleanNode(ctx)); err != nil {
		return err
	}
	part := name + "." + filesClaim + ".kdump"
	parts, err := b.fetchParts(ctx, dump, map[string]copier{ClaimName: ofDisk(b.Target), filesClaim: func(file string, size int64) (string, error) {
		content, err := b.Guest.ReadFile(ctx, fileMount+"/"+part)
		if err != nil || int64(len(content)) != size {
			return "", fmt.Errorf("the file has %d bytes, not %d: %w", len(content), size, err)
		}
		sum := sha256.Sum256(content)
		return hex.EncodeToString(sum[:]), os.WriteFile(file, content, 0o600)
	}})
	if err != nil {
		return err
	}
	whole := filepath.Join(b.Options.Out, name+".kdump")
	if _, err := b.livedump(ctx, "convert", parts[0], parts[1], whole); err != nil {
		return err
	}
	verdict, err := b.livedump(ctx, "verify", whole)
	if err != nil {
		return err
	}
	b.Step("a disk and the file %s, joined: %s", part, lineWith(verdict, "good"))
	return b.delete(ctx, name)
}
