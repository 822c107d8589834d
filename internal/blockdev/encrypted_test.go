// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"filippo.io/age"

	"livedump.io/internal/agefile"
	"livedump.io/internal/kdump"
)

// disk is an Output in memory.
type disk []byte

func (d disk) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }
func (d disk) ReadAt(p []byte, off int64) (int, error)  { return copy(p, d[off:]), nil }
func (d disk) Sync() error                              { return nil }
func (d disk) Size() int64                              { return int64(len(d)) }

func TestEncryptedDumps(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	recipients := []age.Recipient{id.Recipient()}
	d := disk(blank())
	f, err := agefile.New(d, recipients, kdump.Session{7})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 2*mib), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Commit(context.Background(), 2*mib); err != nil {
		t.Fatal(err)
	}
	if err := checkContent(contentOf(t, d), IfEmptyOrLiveDump, "disk"); err != nil {
		t.Errorf("an encrypted dump of livedump: %v", err)
	}
	if err := checkContent(contentOf(t, d), Never, "disk"); !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), "session 07000000-") {
		t.Errorf("policy Never: %v", err)
	}
	// With a file system over it, it is not ours any more.
	copy(d[1080:], "\x53\xef")
	if err := checkContent(contentOf(t, d), IfEmptyOrLiveDump, "disk"); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("with a file system over it: %v", err)
	}

	var other bytes.Buffer
	w, err := age.Encrypt(&other, recipients...)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	foreign := blank()
	copy(foreign, other.Bytes())
	if err := checkContent(contentOf(t, foreign), IfEmptyOrLiveDump, "disk"); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("an age file of another program: %v", err)
	}
}
