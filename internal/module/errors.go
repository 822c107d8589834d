// SPDX-License-Identifier: Apache-2.0

package module

import "errors"

// Why the module could not be loaded. Every error of Ensure wraps one of them, or is a plain failure.
var (
	// ErrNotFound: there is no module for the running kernel.
	ErrNotFound = errors.New("no livedump module for the running kernel")
	// ErrRejected: the kernel, or the rules of this package, do not accept the module.
	ErrRejected = errors.New("the module was rejected")
	// ErrLockedDown: kernel lockdown forbids loading it.
	ErrLockedDown = errors.New("kernel lockdown forbids loading the module")
	// ErrUnsupported: the module found that it cannot work on this kernel or machine.
	ErrUnsupported = errors.New("the module does not support this kernel or machine")
	// ErrNoMemory: not enough memory to load it.
	ErrNoMemory = errors.New("not enough memory to load the module")
	// ErrInUse: the module cannot be unloaded since somebody uses it.
	ErrInUse = errors.New("the module is in use")
)
