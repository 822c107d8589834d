// SPDX-License-Identifier: Apache-2.0

// Package blockdev finds the target device of a dump and makes sure that it may be overwritten.
//
// A wrong device is the worst mistake this project can make. So every check is a function of its own with an
// error of its own, all of them run before the device is opened for writing, and they run again once it is
// claimed exclusively, when nobody can change the answers any more.
package blockdev
