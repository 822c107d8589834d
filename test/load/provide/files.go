// SPDX-License-Identifier: Apache-2.0

// Package provide puts the program load and what it needs into a guest.
package provide

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"livedump.io/test/guest"
)

// Program is where the program is in the guest.
const Program = "/opt/load"

// ChurnModule is where kmod/test's module of that name is in the guest.
const ChurnModule = "/opt/livedump_churn.ko"

// ModuleList is a file in the guest: a line for each kernel module that a load
// wants, its name and the files to load in order, none if it is built in.
const ModuleList = "/etc/load/modules"

// LoopModules are loaded and unloaded all the time: small, free of hardware, not
// needed by any other load.
var LoopModules = []string{"dummy", "ifb", "nlmon"}

var needed = []string{"ext4", "xfs", "loop", "veth"}

// The file systems are made in the guest.
var (
	mkfs     = []string{"/sbin/mke2fs", "/sbin/mkfs.xfs"}
	packages = []string{"e2fsprogs", "xfsprogs", "busybox-static"}
)

// Files are what a guest of the kernel needs to run the program, which is built
// already at bin. They are to be among guest.Config.Files. The churn module comes
// along if it is built, in kmod-test/<release> beside the program.
func Files(ctx context.Context, kernel *guest.Kernel, bin string) ([]guest.File, error) {
	if _, err := guest.Hack(ctx, "install-host-packages", packages...); err != nil {
		return nil, err
	}
	files := []guest.File{
		{Path: Program, Source: bin, Mode: 0o755},
		// mke2fs does without, but says so.
		{Path: "/etc/mke2fs.conf", Source: "/etc/mke2fs.conf"},
	}
	churn := filepath.Join(filepath.Dir(bin), "kmod-test", kernel.Release, "livedump_churn.ko")
	if _, err := os.Stat(churn); err == nil {
		files = append(files, guest.File{Path: ChurnModule, Source: churn})
	}
	var list strings.Builder
	names := append(append([]string{}, LoopModules...), needed...)
	for _, nic := range NICsOf(kernel) {
		names = append(names, nic.Module)
	}
	for _, name := range names {
		modules, err := kernel.ModuleFiles(name)
		if err != nil {
			return nil, err
		}
		fmt.Fprint(&list, name)
		for _, module := range modules {
			file := path.Join("/lib/modules", kernel.Release, module)
			fmt.Fprint(&list, " ", file)
			files = append(files, guest.File{Path: file, Source: filepath.Join(kernel.ModulesDir(), module)})
		}
		fmt.Fprintln(&list)
	}
	files = append(files, guest.File{Path: ModuleList, Data: []byte(list.String())})
	programs, err := WithLibraries(ctx, mkfs[:]...)
	return append(files, programs...), err
}

// WithLibraries are programs of this machine and the shared objects that they load.
func WithLibraries(ctx context.Context, programs ...string) ([]guest.File, error) {
	var files []guest.File
	for _, program := range programs {
		libraries, err := libraries(ctx, program)
		if err != nil {
			return nil, err
		}
		for _, file := range append(libraries, program) {
			files = append(files, guest.File{Path: file, Source: file, Mode: 0o755})
		}
	}
	return files, nil
}

// libraries are the shared objects that a program of this machine loads.
func libraries(ctx context.Context, program string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", program, err)
	}
	// "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)", or the loader's path alone.
	var files []string
	for _, line := range strings.Split(string(out), "\n") {
		for _, word := range strings.Fields(line) {
			if path.IsAbs(word) {
				files = append(files, word)
				break
			}
		}
		if strings.Contains(line, "not found") {
			return nil, fmt.Errorf("ldd %s: %s", program, strings.TrimSpace(line))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("ldd %s names no shared object: %q", program, out)
	}
	return files, nil
}
