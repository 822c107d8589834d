// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"livedump.io/internal/blockdev/blockdevtest"
)

// mountAt mounts for the duration of the test.
func mountAt(t *testing.T, source, point, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, point, kind, flags, options); err != nil {
		t.Skipf("cannot mount %s here: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestFindFilesystem(t *testing.T) {
	const uid, dir = "0c7fa4d2-1111-2222-3333-444444444444", "/var/lib/kubelet"
	h := fakeHost(t, rootMount, "")
	volumes := filepath.Join(h.Root, dir, "pods", uid, "volumes")
	folder := func(parts ...string) string {
		t.Helper()
		p := filepath.Join(append([]string{volumes}, parts...)...)
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
		return p
	}
	disk, _ := blockdevtest.Loop(t, 16*mib)
	runTool(t, tool(t, "mkfs.ext4"), "-q", disk)
	mountAt(t, disk, folder("kubernetes.io~local-volume", "local"), "ext4", 0, "")
	mountAt(t, disk, folder("kubernetes.io~csi", "csi", "mount"), "ext4", 0, "")
	readOnly := folder("kubernetes.io~local-volume", "read-only")
	mountAt(t, folder("kubernetes.io~local-volume", "local"), readOnly, "", unix.MS_BIND, "")
	if err := unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	mountAt(t, "tmpfs", folder("kubernetes.io~local-volume", "memory"), "tmpfs", 0, "size=1m")
	// As the kubelet mounts a local volume that is a folder.
	mountAt(t, folder("..", "some-folder"), folder("kubernetes.io~local-volume", "folder"), "", unix.MS_BIND, "")
	folder("kubernetes.io~local-volume", "not-mounted")
	folder("kubernetes.io~csi", "csi-not-mounted", "mount")
	folder("kubernetes.io~nfs", "twice")
	folder("kubernetes.io~csi", "twice")
	// A link must not make the node's own disk look like a volume.
	if err := os.Symlink("/", filepath.Join(volumes, "kubernetes.io~local-volume", "link")); err != nil {
		t.Fatal(err)
	}

	for pv, want := range map[string]error{
		"local": nil, "csi": nil, "folder": nil,
		"not-mounted": ErrNotMount, "csi-not-mounted": ErrNotMount, "link": ErrNotMount, "memory": ErrInMemory,
		"missing": ErrNotFound, "twice": ErrNotFound,
	} {
		fs, err := h.FindFilesystem(dir, uid, pv)
		if !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Errorf("%s: got %v, want %v", pv, err, want)
		}
		if err == nil {
			t.Logf("%s: %s, %d bytes are available", pv, fs.Source, fs.Available)
			if fs.Available <= 0 || pv != "folder" && fs.Available > 16*mib {
				t.Errorf("%s: %d bytes are available", pv, fs.Available)
			}
			_ = fs.Dir.Close()
		}
	}
	// Whether one mount is read-only shows in the flags of the mount, not of the file system.
	if fs, err := h.FindFilesystem(dir, uid, "read-only"); !errors.Is(err, ErrReadOnly) {
		t.Errorf("read-only: got %v, want %v", err, ErrReadOnly)
		if err == nil {
			_ = fs.Dir.Close()
		}
	}
	for _, bad := range [][2]string{{"../" + uid, "local"}, {uid, "../local"}, {"", "local"}, {uid, ""}} {
		if _, err := h.FindFilesystem(dir, bad[0], bad[1]); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
