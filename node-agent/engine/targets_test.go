// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/blockdev"
	"livedump.io/internal/convert"
	"livedump.io/internal/format"
	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
	"livedump.io/internal/stream"
	"livedump.io/internal/target"
)

// volume is a folder in place of a mounted volume.
func volume(dir string, available int64) func() (*blockdev.Filesystem, error) {
	return func() (*blockdev.Filesystem, error) {
		f, err := os.Open(dir)
		return &blockdev.Filesystem{Dir: f, Available: available, Source: "a folder"}, err
	}
}

// checkFile reads a dump with the reader that knows all formats, and verifies it.
func checkFile(t *testing.T, path string, r *Report) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(b); fmt.Sprintf("%x", sum) != r.SHA256 || uint64(len(b)) != r.SizeBytes {
		t.Errorf("%d bytes with SHA-256 %x, the report says %d and %s", len(b), sum, r.SizeBytes, r.SHA256)
	}
	// What was sent away was not.
	if sent := r.Device == "a pipe" || strings.HasPrefix(r.Device, "tls://"); r.ReadBack == sent {
		t.Errorf("%s: read back, it says: %v", r.Device, r.ReadBack)
	}
	if r.PagesDumped == 0 || r.LostPages != 1 || r.UncoveredPages != 1 {
		t.Errorf("report: %+v", r)
	}
	if format.ELF.String() == r.Format {
		return // its reader wants a kernel's page tables in it
	}
	s, err := convert.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	report, err := s.Verify(context.Background(), kdump.VerifyOptions{})
	if err != nil || !report.OK || report.Pages != r.PagesDumped || report.Lost != r.LostPages {
		t.Errorf("verify: %+v, %v", report, err)
	}
}

// dumpTo makes a dump of small memory with a lost and an uncovered page.
func dumpTo(open Open, o Options) (*Report, error) {
	m := testMemory(3000)
	m.Flags[300], m.Flags[401] = session.PageLost, session.PageUncovered
	e := testEngine(nil, m)
	e.OpenTarget = open
	return e.Dump(context.Background(), o)
}

func TestDumpToFile(t *testing.T) {
	for _, f := range []format.Format{format.Natural, format.Kdump, format.Flattened, format.ELF} {
		t.Run(fmt.Sprint(uint8(f)), func(t *testing.T) {
			dir := t.TempDir()
			o := testOptions()
			o.Format = f
			r, err := dumpTo(FileInVolume(volume(dir, 256<<20), "dump", "the file", blockdev.Never, kdump.Session{}), o)
			if err != nil {
				t.Fatal(err)
			}
			if f == format.Natural {
				f = format.Kdump
			}
			if r.Format != f.String() || r.Device != "the file (a folder)" {
				t.Errorf("format %q, device %q", r.Format, r.Device)
			}
			checkFile(t, filepath.Join(dir, "dump"), r)
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
				t.Errorf("in the folder: %v, %v", left, err)
			}
		})
	}
}

func TestFileIsReplacedOnlyIfItMayBe(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dump")
	attempt := func(policy blockdev.Policy, want error) *Report {
		t.Helper()
		before, _ := os.ReadFile(path)
		r, err := dumpTo(FileInVolume(volume(dir, 256<<20), "dump", "the file", policy, kdump.Session{}), testOptions())
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("got %v, want %v", err, want)
		}
		if after, _ := os.ReadFile(path); want != nil && !bytes.Equal(before, after) {
			t.Error("the refused file was changed")
		}
		return r
	}
	for name, content := range map[string][]byte{"text": []byte("something of somebody"), "a core": append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 5000)...)} {
		t.Log(name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		attempt(blockdev.IfEmptyOrLiveDump, blockdev.ErrNotEmpty)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	attempt(blockdev.Never, blockdev.ErrNotEmpty)
	checkFile(t, path, attempt(blockdev.IfEmptyOrLiveDump, nil))
	checkFile(t, path, attempt(blockdev.IfEmptyOrLiveDump, nil)) // over the one before
	attempt(blockdev.Never, blockdev.ErrNotEmpty)

	// A folder of that name, and a link to a good dump.
	if err := os.Rename(path, filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("other", path); err != nil {
		t.Fatal(err)
	}
	if _, err := dumpTo(FileInVolume(volume(dir, 256<<20), "dump", "the file", blockdev.IfEmptyOrLiveDump, kdump.Session{}), testOptions()); err == nil {
		t.Error("a link was followed or replaced")
	}
	if _, err := dumpTo(FileInVolume(volume(dir, 256<<20), "missing/dump", "the file", blockdev.Never, kdump.Session{}), testOptions()); !errors.Is(err, blockdev.ErrNotFound) {
		t.Errorf("a missing folder: %v", err)
	}
}

// A dump that fails leaves the one before as it was.
func TestFailedDumpKeepsTheFileBefore(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dump")
	open := func(available int64) Open {
		return FileInVolume(volume(dir, available), "dump", "the file", blockdev.IfEmptyOrLiveDump, kdump.Session{})
	}
	before, err := dumpTo(open(256<<20), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions()
	o.UUID[5] = 5
	_, err = dumpTo(open(4<<20), o)
	if !errors.Is(err, kdump.ErrTargetTooSmall) {
		t.Errorf("got %v, want %v", err, kdump.ErrTargetTooSmall)
	}
	checkFile(t, path, before)
	if _, err := os.Stat(path + target.Partial); err == nil {
		t.Error("a partial file is left")
	}
}

func TestFormatMustFitTheTarget(t *testing.T) {
	f := newFile(t, 64<<20)
	o := testOptions()
	o.Format = format.ELF
	m := testMemory(100)
	e := testEngine(f, m)
	if _, err := e.Dump(context.Background(), o); !errors.Is(err, format.ErrFormat) || Reason(err) != "TargetWrongMode" {
		t.Errorf("%v, reason %s", err, Reason(err))
	}
	if m.Sessions() != 0 {
		t.Error("there was a session")
	}
}

func TestDumpToPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "received")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	copied := make(chan error, 1)
	go func() {
		f, err := os.Create(path)
		if err == nil {
			_, err = io.Copy(f, r)
			err = errors.Join(err, f.Close())
		}
		copied <- err
	}()
	report, err := dumpTo(func(context.Context) (target.Target, error) { return target.NewPipe(w, "a pipe"), nil }, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := <-copied; err != nil {
		t.Fatal(err)
	}
	if report.Format != format.Flattened.String() {
		t.Errorf("format %q", report.Format)
	}
	checkFile(t, path, report)
}

func TestDumpToReceiver(t *testing.T) {
	cert, ca, err := stream.SelfSigned([]string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "dump")
	failures := make(chan error, 1)
	receiver := stream.Receiver{Path: path, Failed: func(_ net.Addr, err error) { failures <- err }}
	received := make(chan error, 1)
	go func() {
		_, err := receiver.Receive(context.Background(), l)
		received <- err
	}()
	open := Stream(stream.Options{Address: l.Addr().String(), CA: ca})

	// A session that fails half-way: the receiver is told why, and keeps nothing.
	m := testMemory(3000)
	m.NextError, m.NextPages = session.ErrReserveExhausted, 500
	e := testEngine(nil, m)
	e.OpenTarget = open
	if _, err := e.Dump(context.Background(), testOptions()); !errors.Is(err, session.ErrReserveExhausted) {
		t.Errorf("got %v, want %v", err, session.ErrReserveExhausted)
	}
	if err := <-failures; !errors.Is(err, stream.ErrSender) {
		t.Errorf("the receiver: %v, want %v", err, stream.ErrSender)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the receiver has a file")
	}

	report, err := dumpTo(open, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := <-received; err != nil {
		t.Fatal(err)
	}
	checkFile(t, path, report)

	// Nobody there: nothing is touched.
	m = testMemory(100)
	e = testEngine(nil, m)
	e.OpenTarget = open
	if _, err := e.Dump(context.Background(), testOptions()); !errors.Is(err, stream.ErrConnect) || Reason(err) != "TargetNotFound" {
		t.Errorf("%v, reason %s", err, Reason(err))
	}
	if m.Sessions() != 0 {
		t.Error("there was a session")
	}
}

// TestFileOfAnAgentThatEnded: the process died when the file had its name, and before it could say so. The next one says that the dump is
// there, and does it no harm; of another session's dump it says nothing.
func TestFileOfAnAgentThatEnded(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"kdump":     func(*Options) {},
		"flattened": func(o *Options) { o.Format = format.Flattened },
		"encrypted": func(o *Options) { o.Recipients = []age.Recipient{id.Recipient()} },
	} {
		for _, policy := range []blockdev.Policy{blockdev.Never, blockdev.IfEmptyOrLiveDump} {
			t.Run(fmt.Sprint(name, "/", policy), func(t *testing.T) {
				dir := t.TempDir()
				o := testOptions()
				change(&o)
				open := FileInVolume(volume(dir, 256<<20), "dump", "the file", policy, testUUID)
				o.Resume = true
				// Nothing is there yet.
				if _, err := dumpTo(open, o); !errors.Is(err, ErrNoDump) || Reason(err) != v1alpha1.ReasonAgentLost {
					t.Errorf("without a file: %v", err)
				}
				o.Resume = false
				if _, err := dumpTo(open, o); err != nil {
					t.Fatal(err)
				}
				before, err := os.ReadFile(filepath.Join(dir, "dump"))
				if err != nil {
					t.Fatal(err)
				}
				o.Resume = true
				if _, err := dumpTo(open, o); !errors.Is(err, ErrUnreported) || Reason(err) != v1alpha1.ReasonAgentLost {
					t.Errorf("with the file: %v", err)
				}
				other := FileInVolume(volume(dir, 256<<20), "dump", "the file", blockdev.IfEmptyOrLiveDump, kdump.Session{9})
				if name == "encrypted" { // whose it is is known, and not that it is a dump
					if _, err := dumpTo(other, o); !errors.Is(err, blockdev.ErrNotEmpty) {
						t.Errorf("another's file: %v", err)
					}
				} else if _, err := dumpTo(other, o); !errors.Is(err, ErrNoDump) {
					t.Errorf("another's file: %v", err)
				}
				after, err := os.ReadFile(filepath.Join(dir, "dump"))
				if err != nil || !bytes.Equal(before, after) {
					t.Errorf("the file was changed: %v", err)
				}
			})
		}
	}
}

// TestPartsOfAnAgentThatEnded: a dump is there if all of its parts are, in files and on devices.
func TestPartsOfAnAgentThatEnded(t *testing.T) {
	dir := t.TempDir()
	out := newFile(t, 64<<20)
	file := func(name string) Open {
		return FileInVolume(volume(dir, 64<<20), name, name, blockdev.Never, testUUID)
	}
	o := testOptions()
	if _, err := dumpTo(Parts(testUUID, file("a"), device(out), file("b")), o); err != nil {
		t.Fatal(err)
	}
	o.Resume = true
	if _, err := dumpTo(Parts(testUUID, file("a"), device(out), file("b")), o); !errors.Is(err, ErrUnreported) {
		t.Errorf("all parts: %v", err)
	}
	if err := kdump.MarkFailed(out, testUUID, errInterrupted); err != nil {
		t.Fatal(err)
	}
	if _, err := dumpTo(Parts(testUUID, file("a"), device(out), file("b")), o); !errors.Is(err, ErrNoDump) || errors.Is(err, ErrUnreported) {
		t.Errorf("two of three: %v", err)
	}
}

// TestLostOnTheWay: of what was sent away nobody here knows whether it arrived.
func TestLostOnTheWay(t *testing.T) {
	o := testOptions()
	o.Resume = true
	pipe := func(context.Context) (target.Target, error) {
		return target.NewPipe(nopCloser{io.Discard}, "a pipe"), nil
	}
	if _, err := dumpTo(pipe, o); !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNoDump) || Reason(err) != v1alpha1.ReasonAgentLost {
		t.Errorf("got %v", err)
	}
	refused := func(context.Context) (target.Target, error) { return nil, blockdev.ErrHeld }
	if _, err := dumpTo(refused, o); Reason(err) != v1alpha1.ReasonTargetInUse || !strings.Contains(err.Error(), "not known here") {
		t.Errorf("got %v", err)
	}
}
