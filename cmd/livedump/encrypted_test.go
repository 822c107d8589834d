// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"livedump.io/internal/agefile"
)

// keyFile is a private key as age-keygen writes it.
func keyFile(t *testing.T) (path, public string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "key.txt")
	if err := os.WriteFile(path, []byte("# public key: "+id.Recipient().String()+"\n"+id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, id.Recipient().String()
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := livedump(args...)
	if err != nil {
		t.Fatalf("livedump %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestEncrypted(t *testing.T) {
	key, public := keyFile(t)
	other, _ := keyFile(t)
	plain := writeDump(t, true)
	for _, form := range []string{"kdump", "flattened"} {
		t.Run(form, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "dump.age")
			must(t, "convert", "--format", form, "--recipient", public, plain, path)
			sealed, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !agefile.IsAge(sealed) || bytes.Contains(sealed, []byte("OSRELEASE")) || bytes.Contains(sealed, []byte("KDUMP")) {
				t.Error("the file is not encrypted")
			}

			// Without a key: what it is, and nothing more.
			if out := must(t, "inspect", path); !strings.Contains(out, "encrypted with age") || !strings.Contains(out, "X25519") || strings.Contains(out, "6.1.0-cli") {
				t.Errorf("inspect: %s", out)
			}
			var info encryptedInfo
			if err := json.Unmarshal([]byte(must(t, "inspect", "--json", path)), &info); err != nil || info.Session != "01020300-0000-0000-0000-000000000000" || info.Bytes != int64(len(sealed)) {
				t.Errorf("inspect --json: %+v, %v", info, err)
			}
			for _, command := range []string{"verify", "dmesg"} {
				if _, err := livedump(command, path); !errors.Is(err, agefile.ErrEncrypted) {
					t.Errorf("%s without a key: %v", command, err)
				}
				if _, err := livedump(command, "-i", other, path); !errors.Is(err, agefile.ErrEncrypted) {
					t.Errorf("%s with another key: %v", command, err)
				}
			}

			if out := must(t, "inspect", "-i", key, path); !strings.Contains(out, "6.1.0-cli") {
				t.Errorf("inspect -i: %s", out)
			}
			if out := must(t, "verify", "-i", key, path); !strings.Contains(out, "good: 98 pages, 2 lost") {
				t.Errorf("verify -i: %s", out)
			}
			back := filepath.Join(t.TempDir(), "dump.kdump")
			must(t, "decrypt", "-i", key, path, back)
			if out := must(t, "verify", back); !strings.Contains(out, "good: 98 pages, 2 lost") {
				t.Errorf("verify of the plain dump: %s", out)
			}
			if form == "kdump" {
				again := filepath.Join(t.TempDir(), "again")
				must(t, "convert", plain, again)
				a, err := os.ReadFile(again)
				b, berr := os.ReadFile(back)
				if err != nil || berr != nil || !bytes.Equal(a, b) {
					t.Error("what was decrypted is not what had been encrypted")
				}
			}

			// On a device other things follow.
			device := filepath.Join(t.TempDir(), "device")
			if err := os.WriteFile(device, append(bytes.Clone(sealed), bytes.Repeat([]byte{0x55}, 100<<10)...), 0o600); err != nil {
				t.Fatal(err)
			}
			if form == "kdump" {
				must(t, "verify", "-i", key, device)
			}

			// Damage.
			sealed[len(sealed)-2000] ^= 1
			if err := os.WriteFile(path, sealed, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := livedump("verify", "-i", key, path); err == nil {
				t.Errorf("a bit was changed, and verify says: %s", out)
			}
			none := filepath.Join(t.TempDir(), "none")
			if _, err := livedump("decrypt", "-i", key, path, none); err == nil {
				t.Error("a bit was changed, and decrypt took it")
			}
			if _, err := os.Stat(none); !errors.Is(err, os.ErrNotExist) {
				t.Error("a damaged file was decrypted to something")
			}
			if err := os.Truncate(path, int64(len(sealed)-1)); err != nil {
				t.Fatal(err)
			}
			if _, err := livedump("decrypt", "-i", key, path, none); err == nil {
				t.Error("a byte is missing, and decrypt took it")
			}
		})
	}
}

func TestExitStatusOfMistakes(t *testing.T) {
	_, public := keyFile(t)
	for _, args := range [][]string{
		{"decrypt", "a", "b"}, {"decrypt", "-i", "x", "a"}, {"inspect"}, {"inspect", "--nonsense", "a"}, {"convert", "--dump-level", "32", "a", "b"},
		{"convert", "--format", "tar", "a", "b"}, {"convert", "--recipient", "age1nonsense", "a", "b"}, {"nonsense"},
	} {
		if _, err := livedump(args...); !errors.As(err, new(wrongUsage)) {
			t.Errorf("%q: %v, which is no mistake of usage", args, err)
		}
	}
	if _, err := livedump("convert", "--format", "elf", "--recipient", public, writeDump(t, true), filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), "cannot be encrypted") {
		t.Errorf("an encrypted ELF vmcore: %v", err)
	}
}
