// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livedump.io/internal/kdump"
)

// target is a file that a dump is written to.
type target struct{ *os.File }

func (target) Size() int64 { return 8 << 20 }

func testMeta() kdump.Meta {
	const info = "OSRELEASE=6.1.0-cli\nNUMBER(phys_base)=4096\nKERNELOFFSET=1\nPAGESIZE=4096\n"
	m := kdump.Meta{
		Session: kdump.Session{1, 2, 3},
		Utsname: kdump.Utsname{Sysname: "Linux", Nodename: "node\x1b[31m", Release: "6.1.0-cli", Version: "#1", Machine: "x86_64"},
		MaxPFN:  1000, Pages: 100, RAM: []kdump.PFNRange{{Start: 0, End: 1000}}, NrCPUs: 1, DumpLevel: 31,
		FrozenAt: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), Stop: 1500 * time.Microsecond,
	}
	le := binary.LittleEndian
	for _, n := range []struct {
		name string
		typ  uint32
		desc []byte
	}{{"CORE", 1, make([]byte, 336)}, {"VMCOREINFO", 0, []byte(info)}} {
		m.Notes = le.AppendUint32(m.Notes, uint32(len(n.name)+1))
		m.Notes = le.AppendUint32(m.Notes, uint32(len(n.desc)))
		m.Notes = le.AppendUint32(m.Notes, n.typ)
		m.Notes = append(m.Notes, n.name...)
		m.Notes = append(m.Notes, make([]byte, 4-len(n.name)%4)...)
		m.VMCoreInfoOffset = uint64(len(m.Notes))
		m.Notes = append(m.Notes, n.desc...)
		m.Notes = append(m.Notes, make([]byte, -len(n.desc)&3)...)
	}
	le.PutUint32(m.Notes[20+32:], 1) // pr_pid of CPU 0
	m.VMCoreInfoBytes = uint64(len(info))
	return m
}

// writeDump writes a dump of page frames 10 to 109, of which two are lost.
func writeDump(t *testing.T, finish bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dump.kdump")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := kdump.NewWriter(target{f}, testMeta(), kdump.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for pfn := uint64(10); pfn < 110; pfn++ {
		if pfn == 20 || pfn == 21 {
			err = w.Add([]kdump.PageRef{{PFN: pfn, Flags: kdump.PageLost}}, make([]byte, kdump.PageSize))
		} else {
			page := bytes.Repeat([]byte{byte(pfn)}, kdump.PageSize)
			copy(page, "content")
			err = w.Add([]kdump.PageRef{{PFN: pfn, Class: kdump.ClassKernel}}, page)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !finish {
		if err := w.Abort(errors.New("the reserve was used up")); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if _, err := w.Finish(context.Background()); err != nil {
		t.Fatal(err)
	}
	return path
}

func livedump(args ...string) (string, error) {
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(context.Background())
	return out.String(), err
}

func TestInspect(t *testing.T) {
	path := writeDump(t, true)
	out, err := livedump("inspect", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"kdump-compressed v6, compression zstd", "01020300-0000-0000-0000-000000000000", "2026-01-02T03:04:05.000006Z",
		"1.5ms", "6.1.0-cli", "node?[31m", "98 pages", "2 pages", "0x14-0x15", "CPU 0", "KERNELOFFSET", "4096",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Error("a dump talks to the terminal")
	}

	out, err = livedump("inspect", "--json", path)
	if err != nil {
		t.Fatal(err)
	}
	var info kdump.Info
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatal(err)
	}
	if info.DumpedPages != 98 || info.Livedump.LostPages != 2 || info.VMCoreInfo["OSRELEASE"] != "6.1.0-cli" {
		t.Errorf("%+v", info)
	}

	out, err = livedump("inspect", "--vmcoreinfo", path)
	if err != nil || !strings.HasPrefix(out, "KERNELOFFSET=1\nNUMBER(phys_base)=4096\nOSRELEASE=6.1.0-cli\n") {
		t.Errorf("%v: %q", err, out)
	}
}

func TestVerify(t *testing.T) {
	path := writeDump(t, true)
	out, err := livedump("verify", path)
	if err != nil || !strings.Contains(out, "good: 98 pages, 2 lost") {
		t.Errorf("%v: %s", err, out)
	}

	// A bit of the first page that has content of its own, page frame 10.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[1<<20+kdump.PageSize+8] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = livedump("verify", path)
	if !errors.Is(err, errReported) || !strings.Contains(out, "DAMAGED") || !strings.Contains(out, "page frame 0x") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = livedump("verify", "--json", path)
	var report kdump.Report
	if !errors.Is(err, errReported) || json.Unmarshal([]byte(out), &report) != nil || report.OK || report.DamagedPageCount != 1 {
		t.Errorf("%v: %s", err, out)
	}
	if err := os.Truncate(path, int64(len(b)/2)); err != nil {
		t.Fatal(err)
	}
	if _, err := livedump("verify", path); !errors.Is(err, kdump.ErrTruncated) {
		t.Errorf("half a dump: %v", err)
	}
}

func TestErrorsOfFiles(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	failed := writeDump(t, false)
	for _, command := range []string{"inspect", "verify"} {
		for _, c := range []struct{ path, want string }{
			{empty, "it is empty"},
			{failed, "the reserve was used up"},
			{t.TempDir(), "neither a regular file nor a block device"},
			{filepath.Join(empty, "none"), "not a directory"},
			{"/nonexistent/dump", "no such file"},
		} {
			if out, err := livedump(command, c.path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s %s: %v, want %q: %s", command, c.path, err, c.want, out)
			}
		}
		if _, err := livedump(command); err == nil {
			t.Errorf("%s without a file is accepted", command)
		}
	}
	if out, err := livedump("version"); err != nil || !strings.HasPrefix(out, "livedump dev") {
		t.Errorf("%v: %s", err, out)
	}
}
