// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// deviceWait is how long a device may take to appear after its driver was loaded.
const deviceWait = 30 * time.Second

// poll is how often a device that is not there yet is looked for.
const poll = 20 * time.Millisecond

func waitForDevice(path string) error {
	for deadline := time.Now().Add(deviceWait); ; time.Sleep(poll) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not appear", path)
		}
	}
}

// findPort returns the device of the virtio-serial port of a name. There is no
// udev to make links by name, so sysfs is asked.
func findPort(name string) (string, error) {
	for deadline := time.Now().Add(deviceWait); ; time.Sleep(poll) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range names {
			b, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(b)) == name {
				device := "/dev/" + filepath.Base(filepath.Dir(file))
				return device, waitForDevice(device)
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("no virtio-serial port named %s", name)
		}
	}
}

// port reads and writes the device with blocking system calls: the port's poll
// reports a hang-up while the host is not connected, which Go's poller would
// turn into an error.
type port struct{ fd int }

func openPort(name string) (*port, error) {
	device, err := findPort(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", device, err)
	}
	return &port{fd}, nil
}

func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err == nil && n == 0:
			// Not connected: the driver does not block then.
			time.Sleep(poll)
			continue
		}
		return n, err
	}
}

func (p *port) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := unix.Write(p.fd, b[written:])
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}
