// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sampleFiles uses every kind of File.
func sampleFiles(t *testing.T) []File {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(tree, "sub"), 0o755),
		os.WriteFile(filepath.Join(tree, "sub", "a"), []byte("content of a"), 0o640),
		os.Symlink("sub/a", filepath.Join(tree, "link")),
		os.WriteFile(filepath.Join(dir, "tool"), []byte("tool"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return []File{
		{Path: "/opt/tree", Source: tree},
		{Path: "/bin/tool", Source: filepath.Join(dir, "tool")},
		{Path: "/etc/name", Data: []byte("one")},
		{Path: "/etc/name", Data: []byte("two"), Mode: 0o600},
		{Path: "/bin/other", Link: "tool"},
		{Path: "/empty", Dir: true},
	}
}

func TestLayout(t *testing.T) {
	nodes, err := layout(sampleFiles(t))
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, n := range nodes {
		paths = append(paths, n.path)
	}
	want := []string{"bin", "bin/other", "bin/tool", "empty", "etc", "etc/name", "opt", "opt/tree", "opt/tree/link", "opt/tree/sub", "opt/tree/sub/a"}
	if !slices.Equal(paths, want) {
		t.Errorf("got %v, want %v", paths, want)
	}
	for _, n := range nodes {
		if n.path == "etc/name" && (string(n.data) != "two" || n.mode != 0o600) {
			t.Errorf("the later of two files must win: %q, mode %o", n.data, n.mode)
		}
	}
	if _, err := layout([]File{{Path: "relative", Data: []byte("x")}}); err == nil {
		t.Error("a relative path was taken")
	}
	if _, err := layout([]File{{Path: "/x", Source: "/does/not/exist"}}); err == nil {
		t.Error("a source that is missing was taken")
	}
}

// The archive is unpacked by a program that is not ours.
func TestInitramfsUnpacks(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "initramfs")
	if err := writeInitramfs(archive, sampleFiles(t)); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	root := t.TempDir()
	var stderr bytes.Buffer
	cmd := exec.Command("busybox", "cpio", "-i", "-d", "-m")
	cmd.Dir, cmd.Stdin, cmd.Stderr = root, in, &stderr
	// Making the console's device node may fail without root; nothing else may.
	if err := cmd.Run(); err != nil && !strings.Contains(stderr.String(), "dev/console") {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	for path, want := range map[string]string{"opt/tree/link": "content of a", "bin/other": "tool", "etc/name": "two"} {
		got, err := os.ReadFile(filepath.Join(root, path))
		if err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
	info, err := os.Stat(filepath.Join(root, "opt/tree/sub/a"))
	if err != nil || info.Mode().Perm() != fs.FileMode(0o640) {
		t.Errorf("mode: %v, %v", info, err)
	}
}

func TestModuleFiles(t *testing.T) {
	dir := t.TempDir()
	modules := filepath.Join(dir, "lib/modules/6.1-test")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"modules.dep": "kernel/a.ko:\nkernel/b-c.ko: kernel/a.ko\n" +
			"kernel/d.ko: kernel/b-c.ko kernel/a.ko\n" +
			"kernel/sum_fast.ko:\nkernel/sum_generic.ko: kernel/lib.ko\nkernel/lib.ko:\nkernel/sum_other.ko:\n",
		"modules.builtin": "kernel/ext4.ko\n",
		"modules.softdep": "# a comment\nsoftdep d pre: crypto-sum e post: a\nsoftdep f post: a\n",
		"modules.alias":   "alias crypto-sum sum_fast\nalias crypto-sum sum_generic\nalias crypto-sum sum_other\n",
	} {
		if err := os.WriteFile(filepath.Join(modules, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k := &Kernel{Release: "6.1-test", Dir: dir}
	got, err := k.ModuleFiles("b_c", "d", "ext4")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"kernel/a.ko", "kernel/b-c.ko", "kernel/lib.ko", "kernel/sum_generic.ko", "kernel/d.ko"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := k.ModuleFiles("missing"); err == nil {
		t.Error("a module that is not there was found")
	}
}
