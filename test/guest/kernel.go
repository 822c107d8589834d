// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Kernel is one of Debian's cloud kernels, unpacked in the cache.
type Kernel struct {
	// Series is the short version by which it was asked for, such as 6.1.
	Series string
	// Release is what uname -r prints.
	Release string
	// Codename is the Debian release that the kernel is from.
	Codename string
	// Dir is the directory that hack/debian-kernel describes.
	Dir string
}

// RepoRoot returns the directory of the module's go.mod.
var RepoRoot = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if filepath.Base(file) != "go.mod" {
		return "", fmt.Errorf("find the repository: not inside its Go module")
	}
	return filepath.Dir(file), nil
})

// CacheDir returns the directory of what is downloaded or built from others.
func CacheDir() (string, error) {
	if dir := os.Getenv("LIVEDUMP_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "livedump"), nil
}

// Hack runs a script of the repository's hack directory and returns its output.
// What it says on stderr is shown, for downloads take a while.
func Hack(ctx context.Context, script string, args ...string) (string, error) {
	root, err := RepoRoot()
	if err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "hack", script), args...)
	cmd.Env = append(os.Environ(), "LIVEDUMP_CACHE="+cache)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("hack/%s %s: %w", script, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// FetchKernel returns the kernel of a series, downloading it on first use.
func FetchKernel(ctx context.Context, series string) (*Kernel, error) {
	dir, err := Hack(ctx, "debian-kernel", series)
	if err != nil {
		return nil, err
	}
	k := &Kernel{Series: series, Dir: dir}
	for name, into := range map[string]*string{"release": &k.Release, "codename": &k.Codename} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		*into = strings.TrimSpace(string(b))
	}
	return k, nil
}

// Image returns the path of the bootable kernel.
func (k *Kernel) Image() string { return filepath.Join(k.Dir, "vmlinuz") }

// Headers returns the tree to build modules against.
func (k *Kernel) Headers() string { return filepath.Join(k.Dir, "headers") }

// ModulesDir returns the host path of /lib/modules/<release>.
func (k *Kernel) ModulesDir() string {
	return filepath.Join(k.Dir, "lib/modules", k.Release)
}

// Configured says whether an option is built into the kernel.
func (k *Kernel) Configured(option string) (bool, error) {
	config, err := os.ReadFile(filepath.Join(k.Dir, "config"))
	return bytes.Contains(config, []byte("\nCONFIG_"+option+"=y\n")), err
}

// ReadHeader returns a header by its path below include. Debian keeps those that all
// flavours share in a directory of their own.
func (k *Kernel) ReadHeader(name string) ([]byte, error) {
	for _, pattern := range []string{"usr/src/linux-headers-*-common*", "headers"} {
		files, err := filepath.Glob(filepath.Join(k.Dir, pattern, "include", name))
		if err != nil {
			return nil, err
		}
		if len(files) > 0 {
			return os.ReadFile(files[0])
		}
	}
	return nil, fmt.Errorf("kernel %s has no header %s", k.Release, name)
}

// FetchVmlinux returns the path of the kernel with symbols and debug
// information, downloading it (about 300 MB) on first use.
func (k *Kernel) FetchVmlinux(ctx context.Context) (string, error) {
	if _, err := Hack(ctx, "debian-kernel", "--vmlinux", k.Series); err != nil {
		return "", err
	}
	return filepath.Join(k.Dir, "vmlinux"), nil
}

// ModuleFiles returns the modules of the given names and all that they depend
// on, softly too (ext4 asks for crc32c by its algorithm), as paths relative to ModulesDir, in the order in which to load them.
// Modules that are built into the kernel are left out. Dashes and underscores
// in names mean the same.
func (k *Kernel) ModuleFiles(names ...string) ([]string, error) {
	deps, err := readModulesDep(filepath.Join(k.ModulesDir(), "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := readBuiltin(filepath.Join(k.ModulesDir(), "modules.builtin"))
	if err != nil {
		return nil, err
	}
	soft, err := readSoftDeps(k.ModulesDir(), deps)
	if err != nil {
		return nil, err
	}
	var files []string
	seen := map[string]bool{}
	var add func(name string)
	add = func(name string) {
		// modules.dep lists the module, then what it needs, nearest first.
		dep := deps[name]
		for i := len(dep) - 1; i >= 0; i-- {
			if seen[dep[i]] {
				continue
			}
			seen[dep[i]] = true
			for _, before := range soft[moduleName(dep[i])] {
				add(before)
			}
			files = append(files, dep[i])
		}
	}
	for _, name := range names {
		name = moduleName(name)
		if _, ok := deps[name]; !ok && !builtin[name] {
			return nil, fmt.Errorf("kernel %s has no module %s", k.Release, name)
		}
		add(name)
	}
	return files, nil
}

// readSoftDeps returns for a module which others want to be loaded before it. Where it names what these do, and several
// do it, that is the one that needs no certain processor.
func readSoftDeps(dir string, deps map[string][]string) (map[string][]string, error) {
	lines, err := os.ReadFile(filepath.Join(dir, "modules.softdep"))
	if err != nil {
		return nil, err
	}
	aliases, err := os.ReadFile(filepath.Join(dir, "modules.alias"))
	if err != nil {
		return nil, err
	}
	doing := map[string]string{}
	for _, line := range strings.Split(string(aliases), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "alias" {
			if strings.HasSuffix(f[2], "_generic") || doing[f[1]] == "" {
				doing[f[1]] = moduleName(f[2])
			}
		}
	}
	soft := map[string][]string{}
	for _, line := range strings.Split(string(lines), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "softdep" || f[2] != "pre:" {
			continue
		}
		for _, before := range f[3:] {
			if before == "post:" {
				break
			}
			name := moduleName(before)
			if _, ok := deps[name]; !ok {
				name = doing[before]
			}
			if _, ok := deps[name]; ok {
				soft[moduleName(f[1])] = append(soft[moduleName(f[1])], name)
			}
		}
	}
	return soft, nil
}

// moduleName turns a path or a name into the name that the kernel uses.
func moduleName(path string) string {
	name := filepath.Base(path)
	if i := strings.Index(name, ".ko"); i >= 0 {
		name = name[:i]
	}
	return strings.ReplaceAll(name, "-", "_")
}

func readModulesDep(path string) (map[string][]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	deps := map[string][]string{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		file, needs, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			return nil, fmt.Errorf("%s: line without a colon: %q", path, lines.Text())
		}
		deps[moduleName(file)] = append([]string{file}, strings.Fields(needs)...)
	}
	return deps, lines.Err()
}

func readBuiltin(path string) (map[string]bool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	builtin := map[string]bool{}
	for _, file := range strings.Fields(string(b)) {
		builtin[moduleName(file)] = true
	}
	return builtin, nil
}
