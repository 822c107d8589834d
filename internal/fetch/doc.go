// SPDX-License-Identifier: Apache-2.0

// Package fetch brings a dump from the claim that it lies on to this machine.
//
// All goes through the API server: a short-lived pod mounts the claim, and a program in it is executed that writes a part of the
// device or file to its standard output. The pod is created, used and deleted with the user's own credentials, so their rights
// decide; nothing listens anywhere. What arrives is written beside the file that it becomes, goes on there after an
// interruption, and gets its name when its SHA-256 is that of the LiveDump's status.
package fetch
