// SPDX-License-Identifier: Apache-2.0

// Package kmsg reads what the kernel logs from some moment on.
package kmsg

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Warning is the level of a warning; more serious levels are smaller.
const Warning = 4

// Tail is the kernel's log from its Open on.
type Tail struct{ fd int }

// Open begins to listen. The path is that of the node of /dev/kmsg.
func Open(path string) (*Tail, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("kernel log %s: %w", path, err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("kernel log %s: %w", path, err)
	}
	return &Tail{fd: fd}, nil
}

// Close ends listening.
func (t *Tail) Close() { unix.Close(t.fd) }

// Messages logged since the last call that begin with a prefix (which is cut off) and are at least as serious as level.
func (t *Tail) Messages(prefix string, level int) ([]string, error) {
	var found []string
	record := make([]byte, 8192) // the kernel gives one record at a time, and none is longer
	for {
		n, err := unix.Read(t.fd, record)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EPIPE): // EPIPE: some were overwritten
			continue
		case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
			return found, nil
		case err != nil:
			return found, fmt.Errorf("kernel log: %w", err)
		}
		if message, ok := parse(string(record[:n]), prefix, level); ok {
			found = append(found, message)
		}
	}
}

// parse reads a record: "priority,sequence,time,flags;message\n" and lines of details.
func parse(record, prefix string, level int) (string, bool) {
	head, message, ok := strings.Cut(record, ";")
	if !ok {
		return "", false
	}
	number, _, _ := strings.Cut(head, ",")
	priority, err := strconv.Atoi(number)
	if err != nil || priority&7 > level {
		return "", false
	}
	message, _, _ = strings.Cut(message, "\n")
	message, ok = strings.CutPrefix(message, prefix)
	return strings.TrimSpace(message), ok
}
