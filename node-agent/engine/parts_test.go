// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/agefile"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/convert"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
)

// filesIn are targets for the parts of a dump, with so much room each.
func filesIn(dir string, rooms ...int64) (open Open, paths []string) {
	var opens []Open
	for i, room := range rooms {
		name := convert.PartName("dump", i)
		opens = append(opens, FileInVolume(volume(dir, room), name, name, blockdev.IfEmptyOrLiveDump, kdump.Session{}))
		paths = append(paths, filepath.Join(dir, name))
	}
	return Parts(kdump.Session{}, opens...), paths
}

// TestDumpToParts splits a dump among three files, in clear and encrypted, and reads all of it.
func TestDumpToParts(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, recipients := range map[string][]age.Recipient{"in clear": nil, "encrypted": {identity.Recipient()}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			open, paths := filesIn(dir, 64<<20, 256<<20, 64<<20)
			o := testOptions()
			o.Recipients = recipients
			r, err := dumpTo(open, o)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Parts) != len(paths) || r.SHA256 != "" || r.LostPages != 1 || r.UncoveredPages != 1 {
				t.Fatalf("report: %+v", r)
			}
			size := uint64(0)
			for i, path := range paths {
				// Each part is what its own numbers say.
				p := r.Parts[i]
				one := &Report{ReadBack: r.ReadBack, SHA256: p.SHA256, SizeBytes: p.SizeBytes, Format: format.ELF.String(), PagesDumped: 1, LostPages: 1, UncoveredPages: 1}
				checkFile(t, path, one)
				size += p.SizeBytes
			}
			if r.SizeBytes != size {
				t.Errorf("%d bytes in all, the parts have %d", r.SizeBytes, size)
			}
			var keys []age.Identity
			if recipients != nil {
				keys = append(keys, identity)
				if _, err := convert.OpenAll(paths); err == nil {
					t.Error("the encrypted parts can be read without a key")
				}
			}
			if _, err := convert.OpenAll(paths[1:], keys...); !errors.Is(err, convert.ErrPart) {
				t.Errorf("two of three parts: %v, want ErrPart", err)
			}
			if _, err := convert.OpenAll(append(slices.Clone(paths), paths[0]), keys...); !errors.Is(err, convert.ErrPart) {
				t.Errorf("a part named twice: %v, want ErrPart", err)
			}
			slices.Reverse(paths)
			s, err := convert.OpenAll(paths, keys...)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			whole := filepath.Join(dir, "whole")
			sum, err := convert.Run(context.Background(), s, whole, convert.Options{Verify: true})
			if err != nil || sum.Pages != r.PagesDumped || sum.Lost != 1 {
				t.Fatalf("%+v, %v: want %d pages", sum, err, r.PagesDumped)
			}
			d, err := kdump.Open(whole)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			got := make([]byte, kdump.PageSize)
			read := 0
			for pfn := uint64(256); pfn < 256+3000; pfn++ {
				if _, err := d.ReadPage(pfn, got); errors.Is(err, kdump.ErrExcluded) {
					continue
				} else if want := testPage(pfn); err != nil || !bytes.Equal(got, append(want, make([]byte, kdump.PageSize-len(want))...)) {
					t.Fatalf("page %d: %v, or other content", pfn, err)
				}
				read++
			}
			if uint64(read) != r.PagesDumped {
				t.Errorf("%d pages can be read, want %d", read, r.PagesDumped)
			}
		})
	}
}

// TestPartsFail: if one part has no room there is no dump, and what was there before stays.
func TestPartsFail(t *testing.T) {
	dir := t.TempDir()
	open, paths := filesIn(dir, 256<<20, 256<<20)
	if _, err := dumpTo(open, testOptions()); err != nil {
		t.Fatal(err)
	}
	open, _ = filesIn(dir, 256<<20, 8<<10)
	if _, err := dumpTo(open, testOptions()); !errors.Is(err, kdump.ErrTargetTooSmall) {
		t.Errorf("got %v, want ErrTargetTooSmall", err)
	}
	s, err := convert.OpenAll(paths)
	if err != nil {
		t.Fatalf("the dump before: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != len(paths) {
		t.Errorf("in the folder: %v, %v", left, err)
	}
	pipe := func(context.Context) (target.Target, error) {
		return target.NewPipe(nopCloser{io.Discard}, "a pipe"), nil
	}
	if _, err := dumpTo(Parts(kdump.Session{}, File(filepath.Join(dir, "new"), blockdev.Never, kdump.Session{}), pipe), testOptions()); !errors.Is(err, format.ErrFormat) {
		t.Errorf("a part in a pipe: %v, want ErrFormat", err)
	}
	o := testOptions()
	o.Format = format.ELF
	open, _ = filesIn(t.TempDir(), 64<<20, 64<<20)
	if _, err := dumpTo(open, o); !errors.Is(err, format.ErrFormat) {
		t.Errorf("an ELF vmcore in parts: %v, want ErrFormat", err)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// device is a fake one that is closed by nobody but the test.
func device(out target.Random) Open {
	return func(context.Context) (target.Target, error) { return out, nil }
}

// TestKilledWithoutJournal kills the process at each step, write and call of the module while it makes a dump that nobody can go on with: a
// split one, an encrypted one, one without a grace. What the next process says is true, and nothing is left that could be taken for the dump or
// a part of it.
func TestKilledWithoutJournal(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		targets int
		keys    []age.Identity
	}{"parts": {2, nil}, "encrypted parts": {2, []age.Identity{identity}}, "one": {1, nil}, "one, encrypted": {1, []age.Identity{identity}}} {
		keys := c.keys
		for _, event := range []string{string(StepModule), string(StepFreeze), string(StepWrite), string(StepThaw), string(StepFinish),
			"freeze", "frozen", "next", "write", "sync", "thawed"} {
			t.Run(name+"/"+event, func(t *testing.T) {
				t.Parallel()
				for i := 1; ; i += 1 + i/3 {
					at := fmt.Sprintf("%s %d", event, i)
					m := testMemory(3000)
					var files []*file
					var paths []string
					for range c.targets {
						files = append(files, newFile(t, 64<<20))
						paths = append(paths, files[len(files)-1].Name())
					}
					attempt := func(dieAt string, resume bool) (bool, *Report, error) {
						p := &process{dieAt: dieAt}
						e := p.engine(m, files[0])
						o := resumable()
						o.Resume = resume
						if len(files) > 1 {
							e.OpenTarget = Parts(kdump.Session{}, device(mortalTarget{files[0], p}), device(mortalTarget{files[1], p}))
						} else {
							o.Grace = 0
						}
						o.OnStep = func(_ context.Context, s Step) { _ = p.at(string(s)) }
						if keys != nil {
							o.Recipients = []age.Recipient{identity.Recipient()}
						}
						r, err := e.Dump(context.Background(), o)
						return p.dead, r, err
					}
					died, r, err := attempt(at, false)
					if !died {
						if err != nil || i == 1 || len(files) > 1 && len(r.Parts) != len(files) {
							t.Fatalf("%s: %v, report %+v", at, err, r)
						}
						return
					}
					_, _, err = attempt("", true)
					if m.Frozen() || m.Open() || Reason(err) != v1alpha1.ReasonAgentLost {
						t.Fatalf("%s: frozen %v, open %v, %v", at, m.Frozen(), m.Open(), err)
					}
					s, oerr := convert.OpenAll(paths, keys...)
					if errors.Is(err, ErrUnreported) {
						if oerr != nil {
							t.Fatalf("%s: the next process says that there is a dump, and it cannot be read: %v", at, oerr)
						}
						if err := s.Close(); err != nil {
							t.Error(err)
						}
						continue
					}
					if oerr == nil {
						t.Fatalf("%s: the next process says %v, and the parts can be read", at, err)
					}
					for _, path := range paths {
						if d, err := kdump.Open(path); err == nil {
							_ = d.Close()
							t.Fatalf("%s: %s looks like a part of a dump", at, path)
						}
						if _, err := agefile.InspectFile(path); err == nil {
							t.Fatalf("%s: %s looks like an encrypted part of a dump", at, path)
						}
					}
				}
			})
		}
	}
}

// uncommitted is a device that cannot be committed.
type uncommitted struct{ *file }

func (uncommitted) Commit(context.Context, int64) (target.Receipt, error) {
	return target.Receipt{}, unix.EIO
}

// TestPartsNotCommitted: a part that cannot be committed takes all others back, those that are complete included.
func TestPartsNotCommitted(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, recipients := range map[string][]age.Recipient{"in clear": nil, "encrypted": {identity.Recipient()}} {
		t.Run(name, func(t *testing.T) {
			files := []*file{newFile(t, 64<<20), newFile(t, 64<<20), newFile(t, 64<<20)}
			o := testOptions()
			o.Recipients = recipients
			_, err := dumpTo(Parts(kdump.Session{}, device(files[0]), device(uncommitted{files[1]}), device(files[2])), o)
			if !errors.Is(err, unix.EIO) {
				t.Fatalf("got %v, want EIO", err)
			}
			for i, f := range files {
				if rec, found := record(t, f); !found || rec.State != kdump.StateFailed || rec.Session != testUUID {
					t.Errorf("part %d says %+v (%v), want that the dump failed", i+1, rec, found)
				}
			}
		})
	}
}
