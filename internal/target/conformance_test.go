// SPDX-License-Identifier: Apache-2.0

package target_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"livedump.io/internal/blockdev"
	"livedump.io/internal/blockdev/blockdevtest"
	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
	"livedump.io/internal/target/targettest"
)

const room = 4 * targettest.DumpBytes

// found reads a file that may not be there.
func found(path string) func(t *testing.T) ([]byte, bool) {
	return func(t *testing.T) ([]byte, bool) {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, false
		}
		if err != nil {
			t.Fatal(err)
		}
		return b, true
	}
}

func filePlace(t *testing.T, dir string, o target.FileOptions) targettest.Place {
	path := filepath.Join(dir, "dump")
	return targettest.Place{
		Open: func(t *testing.T) target.Target {
			f, err := target.CreateFile(path, o)
			if err != nil {
				t.Fatal(err)
			}
			return f
		},
		Found: found(path),
	}
}

// preallocated takes the room of a place's file at once.
func preallocated(p targettest.Place) targettest.Place {
	open := p.Open
	p.Open = func(t *testing.T) target.Target {
		f := open(t).(*target.File)
		if err := f.Preallocate(f.Size()); err != nil {
			t.Fatal(err)
		}
		return f
	}
	return p
}

// smallDir is a folder on a file system that has less room than any dump.
func smallDir(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFile(t *testing.T) {
	tooSmall := func(t *testing.T) targettest.Place {
		return filePlace(t, t.TempDir(), target.FileOptions{Room: targettest.DumpBytes})
	}
	t.Run("sparse", func(t *testing.T) {
		targettest.Run(t,
			func(t *testing.T) targettest.Place { return filePlace(t, t.TempDir(), target.FileOptions{Room: room}) },
			targettest.Fault{Name: "less-room-than-needed", Want: kdump.ErrTargetTooSmall, Place: tooSmall},
			targettest.Fault{
				Name: "full-file-system", Want: unix.ENOSPC,
				Place: func(t *testing.T) targettest.Place {
					return filePlace(t, smallDir(t, "size=4m"), target.FileOptions{Room: room})
				},
			},
		)
	})
	t.Run("preallocated", func(t *testing.T) {
		targettest.Run(t,
			func(t *testing.T) targettest.Place {
				return preallocated(filePlace(t, t.TempDir(), target.FileOptions{Room: room}))
			},
			targettest.Fault{Name: "less-room-than-needed", Want: kdump.ErrTargetTooSmall,
				Place: func(t *testing.T) targettest.Place { return preallocated(tooSmall(t)) }},
		)
	})
}

func devicePlace(path, content string) targettest.Place {
	return targettest.Place{
		Open: func(t *testing.T) target.Target {
			id, err := blockdev.LocalHost.Resolve(path)
			if err != nil {
				t.Fatal(err)
			}
			d, err := blockdev.Open(context.Background(), blockdev.LocalHost, id, blockdev.Need{})
			if err != nil {
				t.Fatal(err)
			}
			return target.NewDevice(d)
		},
		Found: found(content),
	}
}

func TestDevice(t *testing.T) {
	targettest.Run(t,
		func(t *testing.T) targettest.Place { return devicePlace(blockdevtest.Loop(t, room)) },
		targettest.Fault{
			Name: "less-room-than-needed", Want: kdump.ErrTargetTooSmall,
			Place: func(t *testing.T) targettest.Place { return devicePlace(blockdevtest.Loop(t, targettest.DumpBytes)) },
		},
		// A device that promises more than it has, as a thin volume does: writes fail half-way.
		targettest.Fault{
			Name: "thin-device-runs-out", Want: unix.ENOSPC, Says: "loop",
			Place: func(t *testing.T) targettest.Place {
				file := filepath.Join(smallDir(t, "size=4m"), "disk")
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(file, room); err != nil {
					t.Fatal(err)
				}
				return devicePlace(blockdevtest.LoopOver(t, file, 0), file)
			},
		},
	)
}

// pipePlace has the pipe's other end read by a program that knows nothing of this one.
func pipePlace(t *testing.T, most int64) targettest.Place {
	path := filepath.Join(t.TempDir(), "received")
	done := make(chan struct{})
	return targettest.Place{
		Open: func(t *testing.T) target.Target {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer close(done)
				defer r.Close()
				f, err := os.Create(path)
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				if _, err := io.CopyN(f, r, most); err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			}()
			p := target.NewPipe(waiting{w, done}, "a pipe")
			t.Cleanup(func() { _ = p.Close() })
			return p
		},
		Found: func(t *testing.T) ([]byte, bool) {
			b, ok := found(path)(t)
			return b, ok && len(b) > 0
		},
	}
}

// waiting is closed when the other end has taken everything.
type waiting struct {
	*os.File
	done chan struct{}
}

func (w waiting) Close() error {
	defer func() { <-w.done }()
	return w.File.Close()
}

// TestFileStaysInItsFolder: no link leads out of the folder that the file is to be in.
func TestFileStaysInItsFolder(t *testing.T) {
	outside, inside := t.TempDir(), t.TempDir()
	for link, to := range map[string]string{"link": outside, "dump": filepath.Join(outside, "dump"), "other.partial": filepath.Join(outside, "other")} {
		if err := os.Symlink(to, filepath.Join(inside, link)); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.Open(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, path := range []string{"link/dump", "../dump", outside + "/dump", "dump", "missing/dump"} {
		if f, err := target.CreateFile(path, target.FileOptions{Room: room, Dir: dir}); err == nil {
			t.Errorf("%s was created", path)
			_ = f.Close()
		}
	}
	// What is in the way of the file under its other name is taken away, not followed.
	f, err := target.CreateFile("other", target.FileOptions{Room: room, Dir: dir, Label: "the file"})
	if err != nil {
		t.Fatal(err)
	}
	if f.Describe() != "the file" {
		t.Errorf("it describes itself as %s", f.Describe())
	}
	if _, err := f.Commit(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
	if st, err := os.Lstat(filepath.Join(inside, "other")); err != nil || !st.Mode().IsRegular() {
		t.Errorf("%v, %v", st, err)
	}
}

func TestPipe(t *testing.T) {
	targettest.Run(t,
		func(t *testing.T) targettest.Place { return pipePlace(t, 1<<40) },
		targettest.Fault{
			Name: "reader-goes-away", Want: unix.EPIPE, Says: "a pipe",
			Place: func(t *testing.T) targettest.Place { return pipePlace(t, targettest.DumpBytes/2) },
		},
	)
}
