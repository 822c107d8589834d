// SPDX-License-Identifier: Apache-2.0

package module

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const release = "6.1.0-test-amd64"

// fakeKernel stands for the kernel.
type fakeKernel struct {
	loaded    *Loaded
	loadErr   error
	unloadErr error
	lockdown  string
	disabled  bool
	calls     []string
}

func (k *fakeKernel) Release() (string, error) { return release, nil }
func (k *fakeKernel) Lockdown() string         { return k.lockdown }
func (k *fakeKernel) ModulesDisabled() bool    { return k.disabled }
func (k *fakeKernel) Loaded(string) (*Loaded, error) {
	return k.loaded, nil
}

func (k *fakeKernel) Load(f *os.File) error {
	k.calls = append(k.calls, "load "+filepath.Base(f.Name()))
	return k.loadErr
}

func (k *fakeKernel) Unload(name string) error {
	k.calls = append(k.calls, "unload "+name)
	if k.unloadErr == nil {
		k.loaded = nil
	}
	return k.unloadErr
}

// writeModule makes a relocatable object with a .modinfo section and nothing else.
func writeModule(t *testing.T, path string, info ...string) {
	t.Helper()
	modinfo := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	const header = 64
	infoAt := header
	namesAt := infoAt + len(modinfo)
	sectionsAt := (namesAt + len(names) + 7) &^ 7
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	le := binary.LittleEndian
	put := func(v any) {
		if err := binary.Write(&b, le, v); err != nil {
			t.Fatal(err)
		}
	}
	put([]uint16{1, 62})                    // ET_REL, x86-64
	put(uint32(1))                          // version
	put([]uint64{0, 0, uint64(sectionsAt)}) // entry, program headers, section headers
	put(uint32(0))                          // flags
	put([]uint16{header, 0, 0, 64, 3, 2})   // sizes and counts; section 2 has the names
	b.Write(modinfo)
	b.Write(names)
	b.Write(make([]byte, sectionsAt-b.Len()))
	section := func(name, kind uint32, offset, size int) {
		put([]uint32{name, kind})
		put([]uint64{0, 0, uint64(offset), uint64(size)})
		put([]uint32{0, 0})
		put([]uint64{1, 0})
	}
	section(0, 0, 0, 0)
	section(1, 1, infoAt, len(modinfo))
	section(10, 3, namesAt, len(names))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

var goodInfo = []string{"license=GPL", "name=livedump", "version=1.2", "srcversion=ABCDEF", "vermagic=" + release + " SMP mod_unload"}

func testDirs(t *testing.T) Dirs {
	t.Helper()
	dir := t.TempDir()
	return Dirs{Image: filepath.Join(dir, "image"), Host: filepath.Join(dir, "host")}
}

func TestFind(t *testing.T) {
	d := testDirs(t)
	if _, err := d.Find(release); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), release) {
		t.Errorf("got %v", err)
	}
	// In reverse order of precedence: each one found hides those before.
	for _, p := range []string{
		filepath.Join(d.Host, release, "updates/livedump.ko"),
		filepath.Join(d.Host, release, "extra/livedump.ko"),
		filepath.Join(d.Image, release, "livedump.ko"),
	} {
		writeModule(t, p, goodInfo...)
		if got, err := d.Find(release); err != nil || got != p {
			t.Errorf("got %s, %v, want %s", got, err, p)
		}
	}
	for _, bad := range []string{"", "..", "../6.1", "a/b"} {
		if got, err := d.Find(bad); err == nil {
			t.Errorf("release %q gave %s", bad, got)
		}
	}
}

func TestReadInfo(t *testing.T) {
	p := filepath.Join(t.TempDir(), "m.ko")
	writeModule(t, p, goodInfo...)
	i, err := ReadInfo(p)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Info{Name: "livedump", Version: "1.2", SrcVersion: "ABCDEF", VerMagic: release + " SMP mod_unload"}); i != want {
		t.Errorf("got %+v, want %+v", i, want)
	}
	if i.Release() != release {
		t.Errorf("release %q", i.Release())
	}
	if err := os.WriteFile(p, []byte("no module"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadInfo(p); !errors.Is(err, ErrRejected) {
		t.Errorf("got %v, want %v", err, ErrRejected)
	}
}

func TestEnsure(t *testing.T) {
	const load, unload = "load livedump.ko", "unload livedump"
	for _, tc := range []struct {
		name   string
		info   []string
		kernel fakeKernel
		how    string
		calls  string
		err    error
		says   string
	}{
		{name: "load", how: OutcomeLoaded, calls: load},
		{name: "adopt", kernel: fakeKernel{loaded: &Loaded{Version: "1.2", SrcVersion: "ABCDEF", State: "live", Users: 1}}, how: OutcomeAdopted},
		{name: "adopt without srcversion", info: []string{"name=livedump", "version=1.2"},
			kernel: fakeKernel{loaded: &Loaded{Version: "1.2", State: "live"}}, how: OutcomeAdopted},
		{name: "replace another version", kernel: fakeKernel{loaded: &Loaded{Version: "1.1", SrcVersion: "OLD", State: "live"}},
			how: OutcomeReplaced, calls: unload + ", " + load},
		{name: "replace another build", kernel: fakeKernel{loaded: &Loaded{Version: "1.2", SrcVersion: "OLD", State: "live"}},
			how: OutcomeReplaced, calls: unload + ", " + load},
		{name: "another version in use", kernel: fakeKernel{loaded: &Loaded{Version: "1.1", SrcVersion: "OLD", State: "live", Users: 2}},
			err: ErrRejected, says: "2 users"},
		{name: "ours, but going", kernel: fakeKernel{loaded: &Loaded{Version: "1.2", SrcVersion: "ABCDEF", State: "going", Users: -1}},
			err: ErrRejected, says: "going"},
		{name: "not to be replaced", kernel: fakeKernel{loaded: &Loaded{SrcVersion: "OLD", State: "live"}, unloadErr: unix.EWOULDBLOCK},
			err: ErrRejected, calls: unload, says: "in use"},
		{name: "another module's file", info: []string{"name=other"}, err: ErrRejected, says: `"other"`},
		{name: "unsigned", kernel: fakeKernel{loadErr: unix.ENOKEY}, err: ErrRejected, calls: load, says: "signature"},
		{name: "wrong key", kernel: fakeKernel{loadErr: unix.EKEYREJECTED}, err: ErrRejected, calls: load, says: "signature"},
		{name: "locked down", kernel: fakeKernel{loadErr: unix.EPERM, lockdown: "integrity"}, err: ErrLockedDown, calls: load, says: "integrity"},
		{name: "modules disabled", kernel: fakeKernel{loadErr: unix.EPERM, disabled: true}, err: ErrRejected, calls: load, says: "modules_disabled"},
		{name: "not permitted", kernel: fakeKernel{loadErr: unix.EPERM, lockdown: "none"}, err: ErrRejected, calls: load, says: "CAP_SYS_MODULE"},
		{name: "other kernel", info: []string{"name=livedump", "vermagic=5.10.0 SMP"}, kernel: fakeKernel{loadErr: unix.ENOEXEC},
			err: ErrRejected, calls: load, says: `"5.10.0"`},
		{name: "other ABI of the same kernel", kernel: fakeKernel{loadErr: unix.EINVAL}, err: ErrRejected, calls: load, says: "kernel log"},
		{name: "unknown symbol", kernel: fakeKernel{loadErr: unix.ENOENT}, err: ErrRejected, calls: load, says: "symbols"},
		{name: "unsupported machine", kernel: fakeKernel{loadErr: unix.EOPNOTSUPP}, err: ErrUnsupported, calls: load},
		{name: "no memory", kernel: fakeKernel{loadErr: unix.ENOMEM}, err: ErrNoMemory, calls: load},
		{name: "race", kernel: fakeKernel{loadErr: unix.EEXIST}, err: ErrRejected, calls: load},
	} {
		t.Run(tc.name, func(t *testing.T) {
			info := tc.info
			if info == nil {
				info = goodInfo
			}
			d := testDirs(t)
			writeModule(t, filepath.Join(d.Image, release, "livedump.ko"), info...)
			o, err := Loader{Kernel: &tc.kernel, Dirs: d}.Ensure()
			if !errors.Is(err, tc.err) || err != nil && tc.err == nil {
				t.Fatalf("got %v, want %v", err, tc.err)
			}
			if err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("the error does not say %q: %v", tc.says, err)
			}
			if o.How != tc.how {
				t.Errorf("%q, want %q", o.How, tc.how)
			}
			if got := strings.Join(tc.kernel.calls, ", "); got != tc.calls {
				t.Errorf("calls: %s, want %s", got, tc.calls)
			}
		})
	}
	t.Run("no module", func(t *testing.T) {
		k := &fakeKernel{}
		if _, err := (Loader{Kernel: k, Dirs: testDirs(t)}).Ensure(); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want %v", err, ErrNotFound)
		}
		if _, err := (Loader{Kernel: k, File: filepath.Join(t.TempDir(), "livedump.ko")}).Ensure(); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want %v", err, ErrNotFound)
		}
		if len(k.calls) > 0 {
			t.Errorf("calls: %v", k.calls)
		}
	})
}

func TestUnload(t *testing.T) {
	for _, tc := range []struct{ errno, want error }{
		{nil, nil}, {unix.ENOENT, nil}, {unix.EWOULDBLOCK, ErrInUse}, {unix.EBUSY, ErrInUse}, {unix.EPERM, unix.EPERM},
	} {
		err := Loader{Kernel: &fakeKernel{unloadErr: tc.errno, loaded: &Loaded{State: "live"}}}.Unload()
		if !errors.Is(err, tc.want) || err != nil && tc.want == nil {
			t.Errorf("%v: got %v, want %v", tc.errno, err, tc.want)
		}
	}
	k := &fakeKernel{unloadErr: unix.ENOSYS}
	if err := (Loader{Kernel: k}).Unload(); err != nil || len(k.calls) > 0 {
		t.Errorf("nothing loaded: %v, calls %v", err, k.calls)
	}
}

func TestRunning(t *testing.T) {
	dir := t.TempDir()
	r := Running{Sys: filepath.Join(dir, "sys"), Root: dir}
	if l, err := r.Loaded(Name); l != nil || err != nil {
		t.Errorf("nothing loaded: %v, %v", l, err)
	}
	if got := r.Lockdown(); got != "" {
		t.Errorf("lockdown %q", got)
	}
	for name, text := range map[string]string{
		"sys/module/livedump/initstate": "live\n", "sys/module/livedump/version": "1.2\n",
		"sys/module/livedump/srcversion": "ABCDEF\n", "sys/module/livedump/refcnt": "3\n",
		"sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := r.Loaded(Name)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Loaded{Version: "1.2", SrcVersion: "ABCDEF", State: "live", Users: 3}); *l != want {
		t.Errorf("got %+v, want %+v", *l, want)
	}
	if got := r.Lockdown(); got != "integrity" {
		t.Errorf("lockdown %q", got)
	}
}

// TestNode opens the node of a device that every machine has, under our name.
func TestNode(t *testing.T) {
	var null unix.Stat_t
	if err := unix.Stat("/dev/null", &null); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	n := Node{Sys: filepath.Join(dir, "sys"), Dev: filepath.Join(dir, "dev"), Private: dir}
	if err := os.MkdirAll(filepath.Join(n.Sys, "class/misc/livedump"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(n.Dev, 0o700); err != nil {
		t.Fatal(err)
	}
	number := fmt.Sprintf("%d:%d\n", unix.Major(null.Rdev), unix.Minor(null.Rdev))
	attribute := filepath.Join(n.Sys, "class/misc/livedump/dev")
	if err := os.WriteFile(attribute, []byte(number), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "probe"), unix.S_IFCHR|0o600, int(null.Rdev)); err != nil {
		t.Skipf("cannot make device nodes: %v", err)
	}
	check := func(what string) {
		t.Helper()
		f, err := n.Open(context.Background())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if st.Rdev != null.Rdev {
			t.Errorf("%s: device %x, want %x", what, st.Rdev, null.Rdev)
		}
	}
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	check("no node in /dev")
	if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
		t.Errorf("the private node was left behind: %v %v", after, err)
	}
	if err := unix.Mknod(filepath.Join(n.Dev, Name), unix.S_IFCHR|0o600, int(null.Rdev)); err != nil {
		t.Fatal(err)
	}
	check("a node in /dev")
	// A node of something else must not be used.
	if err := os.WriteFile(attribute, []byte("10:250\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := n.Open(context.Background()); err == nil {
		f.Close()
		t.Error("the node of another device was opened")
	}

	if err := os.Remove(attribute); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := n.Open(ctx); err == nil {
		t.Error("a device that does not exist was opened")
	}
}
