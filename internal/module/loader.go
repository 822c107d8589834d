// SPDX-License-Identifier: Apache-2.0

package module

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Loader brings the right module into the kernel.
type Loader struct {
	Kernel Kernel
	Dirs   Dirs
	// File is a module file to use instead of searching for one; empty otherwise.
	File string
}

// How the module came to be there.
const (
	OutcomeLoaded   = "loaded"
	OutcomeAdopted  = "adopted"
	OutcomeReplaced = "replaced"
)

// Outcome of Ensure.
type Outcome struct {
	// How is OutcomeLoaded, OutcomeAdopted or OutcomeReplaced.
	How  string
	File string
	Info Info
}

// Ensure makes sure that the module of the file for the running kernel is loaded.
// ErrNotFound, ErrRejected, ErrLockedDown, ErrUnsupported, ErrNoMemory.
func (l Loader) Ensure() (Outcome, error) {
	release, err := l.Kernel.Release()
	if err != nil {
		return Outcome{}, err
	}
	path := l.File
	if path == "" {
		if path, err = l.Dirs.Find(release); err != nil {
			return Outcome{}, err
		}
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return Outcome{}, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return Outcome{}, fmt.Errorf("the module: %w", err)
	}
	defer file.Close()
	info, err := ReadInfo(path)
	if err != nil {
		return Outcome{}, err
	}
	if info.Name != "" && info.Name != Name {
		return Outcome{}, fmt.Errorf("%s: %w: it is module %q, not %s", path, ErrRejected, info.Name, Name)
	}
	outcome := Outcome{How: OutcomeLoaded, File: path, Info: info}

	loaded, err := l.Kernel.Loaded(Name)
	if err != nil {
		return Outcome{}, err
	}
	if loaded != nil {
		if loaded.State == "live" && same(*loaded, info) {
			outcome.How = OutcomeAdopted
			return outcome, nil
		}
		if loaded.State != "live" || loaded.Users != 0 {
			return Outcome{}, fmt.Errorf("%w: another build of it is loaded (version %q, srcversion %q, %s) and has %d users; ours is version %q, srcversion %q",
				ErrRejected, loaded.Version, loaded.SrcVersion, loaded.State, loaded.Users, info.Version, info.SrcVersion)
		}
		if err := l.Unload(); err != nil {
			return Outcome{}, fmt.Errorf("%w: another build of it is loaded and cannot be replaced: %w", ErrRejected, err)
		}
		outcome.How = OutcomeReplaced
	}
	if err := l.Kernel.Load(file); err != nil {
		return Outcome{}, l.explain(err, path, release, info)
	}
	return outcome, nil
}

// same says whether what is loaded was built from the same source as the file. A module built without
// srcversion is known by its version alone.
func same(l Loaded, i Info) bool {
	if l.SrcVersion != "" || i.SrcVersion != "" {
		return l.SrcVersion == i.SrcVersion && l.Version == i.Version
	}
	return l.Version != "" && l.Version == i.Version
}

// explain gives the errno of finit_module its meaning.
func (l Loader) explain(err error, path, release string, info Info) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("loading %s: %w", path, err)
	}
	wrap := func(kind error, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s (%w)", kind, path, fmt.Sprintf(format, args...), errno)
	}
	switch errno {
	case unix.ENOKEY, unix.EKEYREJECTED:
		return wrap(ErrRejected, "the kernel enforces module signatures, and the module has none by a key that it trusts")
	case unix.EBADMSG, unix.EKEYEXPIRED, unix.EKEYREVOKED, unix.ENOPKG:
		return wrap(ErrRejected, "the kernel does not accept the module's signature")
	case unix.EPERM, unix.EACCES:
		if l.Kernel.ModulesDisabled() {
			return wrap(ErrRejected, "kernel.modules_disabled forbids loading modules until the next boot")
		}
		if level := l.Kernel.Lockdown(); level != "" && level != "none" {
			return wrap(ErrLockedDown, "lockdown level is %s", level)
		}
		return wrap(ErrRejected, "the kernel or its security policy forbids it; CAP_SYS_MODULE is needed")
	case unix.ENOEXEC, unix.EINVAL:
		if built := info.Release(); built != release {
			return wrap(ErrRejected, "it was built for kernel %q and the node runs %q", built, release)
		}
		return wrap(ErrRejected, "it does not fit the running kernel (%s); the kernel log has the reason", info.VerMagic)
	case unix.ENOENT:
		return wrap(ErrRejected, "it uses symbols that the running kernel does not have; the kernel log names them")
	case unix.EOPNOTSUPP, unix.ENODEV, unix.ENXIO:
		return wrap(ErrUnsupported, "the kernel log has the reason")
	case unix.ENOMEM:
		return wrap(ErrNoMemory, "loading failed")
	case unix.EEXIST, unix.EBUSY:
		return wrap(ErrRejected, "a module of that name is being loaded or unloaded by somebody else")
	}
	return fmt.Errorf("loading %s: %w", path, errno)
}

// Unload takes the module out of the kernel. That it is not there is no error. ErrInUse.
func (l Loader) Unload() error {
	loaded, err := l.Kernel.Loaded(Name)
	if err != nil {
		return fmt.Errorf("unloading %s: %w", Name, err)
	}
	if loaded == nil {
		return nil // nothing is asked of a kernel that may have no modules at all
	}
	err = l.Kernel.Unload(Name)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unloading %s: %w (%w)", Name, ErrInUse, err)
	}
	return fmt.Errorf("unloading %s: %w", Name, err)
}
