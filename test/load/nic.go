// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"livedump.io/test/load/provide"
)

// nicLoad sends through two network devices of one model, which are joined by a hub of the hypervisor: what arrives
// is written to memory by a device, not by the kernel.
func nicLoad(n provide.NIC) load {
	return load{
		name:  n.Load,
		about: "TCP from one " + n.Model + " network device of the guest to another, each in a network namespace made for it",
		start: func(e *env) (*work, error) {
			if err := needModule(n.Module); err != nil {
				return nil, err
			}
			p := &nicPair{near: -1, far: -1}
			e.atEnd(p.close)
			if err := onOwnThread(func() error { return p.open(n.Driver) }); err != nil {
				return nil, err
			}
			return &work{workers: 2, round: func(_ context.Context, n int64) (int, error) {
				return networkChunks, onOwnThread(func() error { return between(p.near, p.far, nicFar, uint64(n)) })
			}}, nil
		},
	}
}

var (
	nicNear = net.IPv4(10, 98, 0, 1)
	nicFar  = net.IPv4(10, 98, 0, 2)
)

// nicPair are two network namespaces with a network device in each. The devices come back to the first
// namespace when nobody uses these any more.
type nicPair struct{ near, far int }

func (p *nicPair) close() error {
	var errs []error
	for _, fd := range []int{p.near, p.far} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

func (p *nicPair) open(driver string) error {
	names, err := interfacesOf(driver)
	if err != nil {
		return err
	}
	if len(names) != 2 {
		return fmt.Errorf("two network devices of the driver %s are needed, there are %q", driver, names)
	}
	first, err := unix.Open(ownNetworkNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the namespace: %w", err)
	}
	defer unix.Close(first)
	for i, end := range []struct {
		fd *int
		ip net.IP
	}{{&p.near, nicNear}, {&p.far, nicFar}} {
		if *end.fd, err = newNetworkNamespace(); err != nil {
			return err
		}
		if err := enter(first); err != nil {
			return err
		}
		if err := moveInterface(names[i], *end.fd); err != nil {
			return err
		}
		if err := enter(*end.fd); err != nil {
			return err
		}
		if err := address(names[i], end.ip, 24); err != nil {
			return err
		}
	}
	return nil
}

// interfacesOf names the network devices of a driver.
func interfacesOf(driver string) ([]string, error) {
	links, err := filepath.Glob("/sys/class/net/*/device/driver")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			return nil, err
		}
		if filepath.Base(target) == driver {
			names = append(names, filepath.Base(filepath.Dir(filepath.Dir(link))))
		}
	}
	slices.Sort(names)
	return names, nil
}
