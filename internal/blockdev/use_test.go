// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeHost is a machine of files: device sda (8:0) with the partitions sda1 and sda2, and dm-0 (253:0) on sdb (8:16).
func fakeHost(t *testing.T, mountinfo, swaps string) Host {
	t.Helper()
	dir := t.TempDir()
	h := Host{Root: filepath.Join(dir, "root"), Proc: filepath.Join(dir, "proc"), Sys: filepath.Join(dir, "sys")}
	files := map[string]string{
		"proc/1/mountinfo":                         mountinfo,
		"proc/swaps":                               "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n" + swaps,
		"sys/devices/pci/block/sda/dev":            "8:0\n",
		"sys/devices/pci/block/sda/uevent":         "MAJOR=8\nMINOR=0\nDEVNAME=sda\n",
		"sys/devices/pci/block/sda/serial":         "ABC 123\n",
		"sys/devices/pci/block/sda/sda1/dev":       "8:1\n",
		"sys/devices/pci/block/sda/sda1/partition": "1\n",
		"sys/devices/pci/block/sda/sda1/uevent":    "DEVNAME=sda1\n",
		"sys/devices/pci/block/sda/sda2/dev":       "8:2\n",
		"sys/devices/pci/block/sda/sda2/partition": "2\n",
		"sys/devices/pci/block/sda/sda2/uevent":    "DEVNAME=sda2\n",
		"sys/devices/pci/block/sda/queue/dev":      "not a device\n",
		"sys/devices/pci/block/sdb/dev":            "8:16\n",
		"sys/devices/pci/block/sdb/uevent":         "DEVNAME=sdb\n",
		"sys/devices/pci/block/sdb/holders/dm-0":   "",
		"sys/devices/virtual/block/dm-0/dev":       "253:0\n",
		"sys/devices/virtual/block/dm-0/uevent":    "DEVNAME=dm-0\n",
		"root/dev/.keep":                           "",
	}
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(h.Sys, "dev/block"), 0o700); err != nil {
		t.Fatal(err)
	}
	for id, target := range map[string]string{"8:0": "pci/block/sda", "8:1": "pci/block/sda/sda1",
		"8:2": "pci/block/sda/sda2", "8:16": "pci/block/sdb", "253:0": "virtual/block/dm-0"} {
		if err := os.Symlink("../../devices/"+target, filepath.Join(h.Sys, "dev/block", id)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

const rootMount = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"

func TestUse(t *testing.T) {
	for _, tc := range []struct {
		name      string
		id        ID
		mountinfo string
		swaps     string
		want      error
	}{
		{name: "nobody uses it", id: ID{253, 0}},
		{name: "whole disk with partitions", id: ID{8, 0}, want: ErrPartitioned},
		{name: "an unused partition", id: ID{8, 1}},
		{name: "another partition is mounted", id: ID{8, 1},
			mountinfo: "30 22 8:2 / /data rw - xfs /dev/sda2 rw\n"},
		{name: "mounted", id: ID{8, 1}, want: ErrMounted,
			mountinfo: "30 22 8:1 / /data rw,noatime shared:7 master:2 - xfs /dev/sda1 rw\n"},
		{name: "a subdirectory of it is mounted", id: ID{8, 1}, want: ErrMounted,
			mountinfo: "30 22 8:1 /sub /data rw - xfs /dev/sda1 rw\n"},
		{name: "its disk is mounted", id: ID{8, 1}, want: ErrMounted,
			mountinfo: "30 22 8:0 / /data rw - iso9660 /dev/sda ro\n"},
		{name: "its node is bind-mounted, as the kubelet does", id: ID{8, 1},
			mountinfo: "31 22 0:5 /sda1 /var/lib/kubelet/plugins/x/dev/uid rw shared:2 - devtmpfs udev rw\n"},
		{name: "swap", id: ID{8, 1}, want: ErrSwap, swaps: "/dev/sda1  partition\t100\t0\t-2\n"},
		{name: "swap seen from a container", id: ID{8, 1}, want: ErrSwap, swaps: "/sda1  partition\t100\t0\t-2\n"},
		{name: "a swap file of the same name", id: ID{8, 1}, swaps: "/home/sda1  file\t100\t0\t-2\n"},
		{name: "LVM on it", id: ID{8, 16}, want: ErrHeld},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := fakeHost(t, rootMount+tc.mountinfo, tc.swaps)
			name, err := h.Name(tc.id)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.checkUnused(tc.id, name); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			} else if err != nil {
				t.Log(err)
			}
		})
	}
}

// TestUseUnreadable: a table that is not understood must not count as one that does not name the device.
func TestUseUnreadable(t *testing.T) {
	h := fakeHost(t, "nonsense\n", "")
	if err := h.checkUnused(ID{8, 1}, "sda1"); err == nil {
		t.Error("a mount table of nonsense passed")
	}
	h = fakeHost(t, rootMount, "")
	if err := os.Remove(filepath.Join(h.Proc, "1/mountinfo")); err != nil {
		t.Fatal(err)
	}
	if err := h.checkUnused(ID{8, 1}, "sda1"); err == nil {
		t.Error("a missing mount table passed")
	}
}

// TestMountSource: btrfs shows a device number of its own; the source tells.
func TestMountSource(t *testing.T) {
	h := fakeHost(t, rootMount+"30 22 0:43 / /data rw - btrfs /dev/sda1 rw\n", "")
	if err := unix.Mknod(filepath.Join(h.Root, "dev/sda1"), unix.S_IFBLK|0o600, int(unix.Mkdev(8, 1))); err != nil {
		t.Skipf("cannot make device nodes: %v", err)
	}
	if err := h.checkUnused(ID{8, 1}, "sda1"); !errors.Is(err, ErrMounted) {
		t.Errorf("got %v, want %v", err, ErrMounted)
	}
	if err := h.checkUnused(ID{8, 2}, "sda2"); err != nil {
		t.Errorf("another partition: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	h := fakeHost(t, rootMount, "")
	i, err := h.identify(ID{8, 1}, "sda1", 4096)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := i.String(), "/dev/sda1 (8:1, 4096 bytes, serial ABC 123)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", `/a\134b`: `/a\b`, `/plain`: "/plain", `/a\`: `/a\`, `/\04`: `/\04`} {
		if got := unescape(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// The direct way must not take a device from under a pod that the kubelet has given it to.
func TestFindLocal(t *testing.T) {
	const mine, other, pv, dir = "0c7fa4d2-1111-2222-3333-444444444444", "aaaaaaaa-1111-2222-3333-444444444444", "pv-1", "/var/lib/kubelet"
	h := fakeHost(t, rootMount, "")
	if err := unix.Mknod(filepath.Join(h.Root, "dev/vdb"), unix.S_IFBLK|0o600, int(unix.Mkdev(254, 16))); err != nil {
		t.Skipf("cannot make device nodes: %v", err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.FindLocal("/dev/vdb", dir, mine, pv); err == nil {
		t.Error("accepted without the kubelet's directory, so nobody knows which pods have the volume")
	}
	attach := func(uid string) {
		t.Helper()
		d := filepath.Join(h.Root, dir, "pods", uid, "volumeDevices/kubernetes.io~local-volume")
		must(os.MkdirAll(d, 0o700))
		must(os.Symlink("/dev/vdb", filepath.Join(d, pv)))
	}
	must(os.MkdirAll(filepath.Join(h.Root, dir, "pods", other, "volumes"), 0o700))
	attach(mine)
	must(os.MkdirAll(filepath.Join(h.Root, "dev/disk/by-id"), 0o700))
	must(os.Symlink("../../vdb", filepath.Join(h.Root, "dev/disk/by-id/wwn-1")))
	for _, p := range []string{"/dev/vdb", "/dev/disk/by-id/wwn-1"} {
		if id, err := h.FindLocal(p, dir, mine, pv); err != nil || id != (ID{254, 16}) {
			t.Errorf("%s: got %s, %v", p, id, err)
		}
	}
	for p, want := range map[string]error{"/dev/vdc": ErrNotFound, "dev/vdb": ErrNotFound, "/dev/disk": ErrNotBlock} {
		if _, err := h.FindLocal(p, dir, mine, pv); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", p, err, want)
		}
	}
	if _, err := h.FindLocal("/dev/vdb", dir, mine, "../"+pv); err == nil {
		t.Error("a volume's name with a path in it was accepted")
	}
	attach(other)
	if _, err := h.FindLocal("/dev/vdb", dir, mine, pv); !errors.Is(err, ErrInUse) {
		t.Errorf("attached for another pod: got %v, want %v", err, ErrInUse)
	}
}

func TestFindVolume(t *testing.T) {
	const uid, pv, dir = "0c7fa4d2-1111-2222-3333-444444444444", "pvc-1", "/var/lib/kubelet"
	const plugin = "kubernetes.io~local-volume"
	h := fakeHost(t, rootMount, "")
	if err := unix.Mknod(filepath.Join(h.Root, "dev/vdb"), unix.S_IFBLK|0o600, int(unix.Mkdev(254, 16))); err != nil {
		t.Skipf("cannot make device nodes: %v", err)
	}
	link := func(plugin, target string) {
		t.Helper()
		d := filepath.Join(h.Root, dir, "pods", uid, "volumeDevices", plugin)
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(d, pv)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.FindVolume(context.Background(), dir, uid, pv, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("nothing attached: got %v, want %v", err, ErrNotFound)
	}
	link(plugin, "/dev/vdb") // an absolute link, which must not lead to this machine's own /dev
	id, err := h.FindVolume(context.Background(), dir, uid, pv, 0)
	if err != nil {
		t.Fatal(err)
	}
	if id != (ID{254, 16}) {
		t.Errorf("got %s", id)
	}
	if _, err := h.FindVolume(context.Background(), dir, uid, "pvc-2", 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("another volume: got %v, want %v", err, ErrNotFound)
	}
	// Another pod has it, and goes, or does not.
	others := filepath.Join(h.Root, dir, "pods/aaaaaaaa-1111-2222-3333-444444444444")
	if err := os.MkdirAll(filepath.Join(others, "volumeDevices", plugin), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/vdb", filepath.Join(others, "volumeDevices", plugin, pv)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.FindVolume(context.Background(), dir, uid, pv, 0); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "aaaaaaaa-") {
		t.Errorf("attached for another pod: got %v, want %v", err, ErrInUse)
	}
	canceled, cancel := context.WithCancelCause(context.Background())
	cancel(io.ErrClosedPipe)
	if _, err := h.FindVolume(canceled, dir, uid, pv, time.Hour); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("canceled while another pod has it: %v", err)
	}
	found := make(chan error, 1)
	go func() {
		_, err := h.FindVolume(context.Background(), dir, uid, pv, time.Hour)
		found <- err
	}()
	if err := os.RemoveAll(others); err != nil {
		t.Fatal(err)
	}
	if err := <-found; err != nil {
		t.Errorf("when the other pod has gone: %v", err)
	}
	link("kubernetes.io~csi", "/dev/vdb")
	if _, err := h.FindVolume(context.Background(), dir, uid, pv, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("two plugins: got %v, want %v", err, ErrNotFound)
	}
	for _, names := range [][2]string{{"..", pv}, {uid, ".."}, {uid, "../" + pv}, {"a/b", pv}, {"", pv}, {uid, ""}, {uid, "."}} {
		if _, err := h.FindVolume(context.Background(), dir, names[0], names[1], 0); err == nil {
			t.Errorf("pod %q, volume %q was accepted", names[0], names[1])
		}
	}
}
