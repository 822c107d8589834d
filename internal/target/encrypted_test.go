// SPDX-License-Identifier: Apache-2.0

package target_test

import (
	"bytes"
	"io"
	"testing"

	"filippo.io/age"

	"livedump.io/internal/agefile"
	"livedump.io/internal/blockdev/blockdevtest"
	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
	"livedump.io/internal/target/targettest"
)

// encrypted is a place with encryption before it. What lies there is decrypted as a reader does it.
func encrypted(t *testing.T, p targettest.Place) targettest.Place {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	open := p.Open
	p.Open = func(t *testing.T) target.Target {
		e, err := target.Encrypt(open(t), []age.Recipient{id.Recipient()}, kdump.Session{9})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	p.Decrypt = func(b []byte) ([]byte, error) {
		r, err := agefile.NewReader(bytes.NewReader(b), int64(len(b)), id)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(io.NewSectionReader(r, 0, r.Size))
	}
	return p
}

func TestEncryptedDevice(t *testing.T) {
	targettest.Run(t,
		func(t *testing.T) targettest.Place { return encrypted(t, devicePlace(blockdevtest.Loop(t, room))) },
		targettest.Fault{
			Name: "less-room-than-needed", Want: kdump.ErrTargetTooSmall,
			Place: func(t *testing.T) targettest.Place {
				return encrypted(t, devicePlace(blockdevtest.Loop(t, targettest.DumpBytes)))
			},
		},
	)
}

func TestEncryptedFile(t *testing.T) {
	place := func(room int64) func(t *testing.T) targettest.Place {
		return func(t *testing.T) targettest.Place {
			return encrypted(t, filePlace(t, t.TempDir(), target.FileOptions{Room: room}))
		}
	}
	targettest.Run(t, place(room), targettest.Fault{Name: "less-room-than-needed", Want: kdump.ErrTargetTooSmall, Place: place(targettest.DumpBytes)})
}

func TestEncryptedPipe(t *testing.T) {
	targettest.Run(t,
		func(t *testing.T) targettest.Place { return encrypted(t, pipePlace(t, 1<<40)) },
		targettest.Fault{
			Name: "reader-goes-away", Says: "a pipe",
			Place: func(t *testing.T) targettest.Place { return encrypted(t, pipePlace(t, targettest.DumpBytes/2)) },
		},
	)
}
