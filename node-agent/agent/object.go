// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/target"
	"livedump.io/internal/target/object"
	"livedump.io/node-agent/engine"
)

// openObject begins an upload with the credentials that the holder has. An upload that a process before this one began cannot be gone on
// with; then it only says whether there is the object, whose name no other LiveDump has.
func openObject(node engine.Node, kubeletDir string, dump *v1alpha1.LiveDump, resume bool) engine.Open {
	return func(ctx context.Context) (target.Target, error) {
		o, err := objectOptions(dump, func(key string) ([]byte, error) {
			return node.Host.ReadProjected(kubeletDir, dump.Status.Target.HolderPodUID, v1alpha1.CredentialsVolume, key)
		})
		if err != nil {
			return nil, err
		}
		o.Log = node.Log
		if !resume {
			return object.Open(ctx, o)
		}
		there, err := object.Exists(ctx, o)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: %w", engine.ErrUnknown, err)
		case there:
			return nil, fmt.Errorf("%w: %s", engine.ErrUnreported, o.Place())
		}
		return nil, fmt.Errorf("%w: there is no object %s", engine.ErrNoDump, o.Place())
	}
}

// objectOptions puts together what the spec and the Secret say.
func objectOptions(dump *v1alpha1.LiveDump, read func(key string) ([]byte, error)) (object.Options, error) {
	s := dump.Spec.Target.ObjectStorage
	o := object.Options{Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket, Key: dump.ObjectKey(), Addressing: object.Addressing(s.Addressing)}
	for _, c := range []struct {
		key      string
		required bool
		take     func([]byte)
	}{
		{v1alpha1.AccessKeyID, true, func(b []byte) { o.AccessKeyID = strings.TrimSpace(string(b)) }},
		{v1alpha1.SecretAccessKey, true, func(b []byte) { o.SecretAccessKey = strings.TrimSpace(string(b)) }},
		{v1alpha1.SessionToken, false, func(b []byte) { o.SessionToken = strings.TrimSpace(string(b)) }},
		{v1alpha1.CACertificate, false, func(b []byte) { o.CA = b }},
	} {
		b, err := read(c.key)
		if !c.required && errors.Is(err, blockdev.ErrNotFound) {
			continue
		}
		if err != nil {
			return o, fmt.Errorf("credentials of the object store, %s of Secret %s: %w", c.key, s.CredentialsSecretName, err)
		}
		c.take(b)
	}
	return o, nil
}
