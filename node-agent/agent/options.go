// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/agefile"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
	"livedump.io/node-agent/engine"
)

// errSpec: the spec asks for what cannot be.
var errSpec = errors.New("the spec cannot be carried out")

// optionsOf turns a spec into what the engine wants. The API has checked the values; an unknown one means that the
// agent is older than the API and must not guess.
func optionsOf(dump *v1alpha1.LiveDump, until, now time.Time) (engine.Options, error) {
	o := engine.Options{UUID: sessionOf(dump), Deadline: until.Sub(now)}
	switch dump.Spec.Content.Profile {
	case v1alpha1.ContentKernel, "":
		o.Level = session.ExcludeAll
	case v1alpha1.ContentFull:
		o.Level = session.ExcludeZero
	default:
		return o, fmt.Errorf("this agent does not know content profile %q", dump.Spec.Content.Profile)
	}
	switch dump.Spec.Consistency {
	case v1alpha1.ConsistencyStrict, "":
		o.Mode = session.Strict
	case v1alpha1.ConsistencyBestEffort:
		o.Mode = session.BestEffort
	default:
		return o, fmt.Errorf("this agent does not know consistency %q", dump.Spec.Consistency)
	}
	switch dump.Spec.Compression {
	case v1alpha1.CompressionZstd, "":
		o.Codec = kdump.CodecZstd
	case v1alpha1.CompressionZlib:
		o.Codec = kdump.CodecZlib
	case v1alpha1.CompressionSnappy:
		o.Codec = kdump.CodecSnappy
	case v1alpha1.CompressionNone:
		o.Codec = kdump.CodecNone
	default:
		return o, fmt.Errorf("this agent does not know compression %q", dump.Spec.Compression)
	}
	if e := dump.Spec.Encryption; e != nil {
		var err error
		if o.Recipients, err = agefile.ParseRecipients(e.Recipients); err != nil {
			return o, fmt.Errorf("%w: spec.encryption.recipients: %w", errSpec, err)
		}
		if len(o.Recipients) == 0 {
			return o, fmt.Errorf("%w: spec.encryption has no recipients", errSpec)
		}
	}
	if s := dump.Spec.Target.Stream; s != nil {
		if err := streamOptions(s).Check(); err != nil {
			return o, fmt.Errorf("%w: spec.target.stream.tls.caBundle: %w", errSpec, err)
		}
	}
	switch dump.Spec.Format {
	case "":
		o.Format = format.Natural
	case v1alpha1.FormatKdump:
		o.Format = format.Kdump
	case v1alpha1.FormatELF:
		o.Format = format.ELF
	case v1alpha1.FormatFlattened:
		o.Format = format.Flattened
	default:
		return o, fmt.Errorf("this agent does not know format %q", dump.Spec.Format)
	}
	if l := dump.Spec.Limits; l != nil {
		o.Readers = int(l.CPUs)
		if l.Bandwidth != nil {
			o.Bandwidth = l.Bandwidth.Value()
		}
	}
	if dump.Spec.Reserve != nil && dump.Spec.Reserve.LimitBytes > 0 {
		o.ReserveBytes = uint64(dump.Spec.Reserve.LimitBytes)
	}
	return o, nil
}

// expectedFor is how long memory is likely to stay frozen, for sizing the reserve: as long as it may, but not more than
// what an ordinary node takes.
func expectedFor(o engine.Options) time.Duration { return min(o.Deadline, time.Minute) }

// sessionOf names the session after the LiveDump, so that what is found on a device or in a kernel log leads back to it.
func sessionOf(dump *v1alpha1.LiveDump) kdump.Session {
	if id, err := uuid.Parse(string(dump.UID)); err == nil {
		return kdump.Session(id)
	}
	var s kdump.Session
	_, _ = rand.Read(s[:]) // never fails
	return s
}
