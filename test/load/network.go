// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/test/churn"
)

const (
	networkStream = 256 << 10 // bytes over each TCP connection
	networkChunks = 8
	// How long a read may take before the connection counts as broken; the
	// machine may be a slow guest that is being dumped.
	networkPatience = 2 * time.Minute
	vethEvery       = 4 // rounds
	// Of the calling thread; not there in a kernel without namespaces.
	ownNetworkNamespace = "/proc/thread-self/ns/net"
)

var networkLoad = load{
	name:  "network",
	about: "TCP and UDP over the loopback, and TCP over a veth pair between two network namespaces made for it where the kernel has namespaces",
	start: func(e *env) (*work, error) {
		if err := needModule("veth"); err != nil {
			return nil, err
		}
		w := &work{workers: 2}
		if _, err := os.Stat(ownNetworkNamespace); errors.Is(err, fs.ErrNotExist) {
			w.without = "network namespaces"
		} else if err != nil {
			return nil, err
		}
		w.round = func(_ context.Context, n int64) (int, error) {
			listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				return 0, err
			}
			if err := stream(listener, nil, func() (*net.TCPConn, error) {
				return net.DialTCP("tcp4", nil, listener.Addr().(*net.TCPAddr))
			}, uint64(n)); err != nil {
				return 0, fmt.Errorf("loopback: %w", err)
			}
			if err := datagrams(uint64(n)); err != nil {
				return networkChunks, err
			}
			// One worker only: names of interfaces are the namespace's, but the
			// addresses are the same.
			if w.without == "" && n%vethEvery == 0 {
				return 3 * networkChunks, overVeth(uint64(n))
			}
			return 2 * networkChunks, nil
		}
		return w, nil
	},
}

// stream sends patterns of several sizes over a connection that sends them back.
// It closes the listener. before is called between listening and dialling.
func stream(listener *net.TCPListener, before func() error, dial func() (*net.TCPConn, error), seed uint64) (err error) {
	echoed := make(chan error, 1)
	go func() {
		echoed <- func() error {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = io.Copy(conn, conn)
			return err
		}()
	}()
	defer func() {
		err = errors.Join(err, listener.Close(), <-echoed)
	}()
	if err := listener.SetDeadline(time.Now().Add(networkPatience)); err != nil {
		return err
	}
	if before != nil {
		if err := before(); err != nil {
			return err
		}
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(networkPatience)); err != nil {
		return err
	}
	for i := range uint64(networkChunks) {
		sent := make([]byte, 1+(seed*7919+i*104729)%(networkStream/networkChunks))
		churn.Fill(sent, seed+i)
		if _, err := conn.Write(sent); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, sent); err != nil {
			return err
		}
		if err := churn.Check(sent, seed+i); err != nil {
			return fmt.Errorf("TCP: %w", err)
		}
	}
	return conn.Close()
}

// datagrams sends one at a time: the loopback loses none then.
func datagrams(seed uint64) error {
	a, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := net.DialUDP("udp4", nil, a.LocalAddr().(*net.UDPAddr))
	if err != nil {
		return err
	}
	defer b.Close()
	if err := a.SetDeadline(time.Now().Add(networkPatience)); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	for i := range uint64(networkChunks) {
		sent := make([]byte, 1+(seed*31+i*1009)%uint64(len(buf)))
		churn.Fill(sent, seed+i)
		if _, err := b.Write(sent); err != nil {
			return err
		}
		n, err := a.Read(buf)
		if err != nil {
			return err
		}
		if n != len(sent) {
			return fmt.Errorf("UDP: %d bytes of %d", n, len(sent))
		}
		if err := churn.Check(buf[:n], seed+i); err != nil {
			return fmt.Errorf("UDP: %w", err)
		}
	}
	return nil
}

var (
	vethNear = net.IPv4(10, 99, 0, 1)
	vethFar  = net.IPv4(10, 99, 0, 2)
)

// overVeth makes two namespaces with a pair of interfaces between them, and sends
// a stream from one to the other. All of it goes with the thread that made it.
func overVeth(seed uint64) error {
	err := onOwnThread(func() error {
		far, err := newNetworkNamespace()
		if err != nil {
			return err
		}
		defer unix.Close(far)
		near, err := newNetworkNamespace()
		if err != nil {
			return err
		}
		defer unix.Close(near)
		if err := newVeth("near0", "far0", far); err != nil {
			return err
		}
		if err := address("near0", vethNear, 24); err != nil {
			return err
		}
		if err := enter(far); err != nil {
			return err
		}
		if err := address("far0", vethFar, 24); err != nil {
			return err
		}
		return between(near, far, vethFar, seed)
	})
	if err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	return nil
}

// onOwnThread calls f on a thread of its own, which ends with it, in whatever namespace that is.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}

// between sends a stream from the namespace near to an address in the namespace far. It leaves the calling
// thread, which must be the goroutine's own, in near.
func between(near, far int, ip net.IP, seed uint64) error {
	if err := enter(far); err != nil {
		return err
	}
	// A socket belongs to the namespace of the thread that makes it; net
	// makes it in the caller's for one numerical address.
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: ip})
	if err != nil {
		return err
	}
	return stream(listener,
		func() error { return enter(near) },
		func() (*net.TCPConn, error) { return net.DialTCP("tcp4", nil, listener.Addr().(*net.TCPAddr)) }, seed)
}

// enter moves the calling thread into a namespace.
func enter(namespace int) error {
	if err := unix.Setns(namespace, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

// newNetworkNamespace moves the calling thread into a new one and returns it.
func newNetworkNamespace() (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("unshare: %w", err)
	}
	fd, err := unix.Open(ownNetworkNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the namespace: %w", err)
	}
	return fd, nil
}
