// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attribute is a netlink attribute; its value may be attributes again.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func text(s string) []byte { return append([]byte(s), 0) }

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// netlink sends one request to the calling thread's network namespace and waits
// for its acknowledgement.
func netlink(kind, flags uint16, body ...[]byte) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(s)
	var payload []byte
	for _, b := range body {
		payload = append(payload, b...)
	}
	header := unix.NlMsghdr{
		Len: uint32(unix.SizeofNlMsghdr + len(payload)), Type: kind,
		Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | flags, Seq: 1,
	}
	message := append(append([]byte{}, bytesOf(&header)...), payload...)
	if err := unix.Sendto(s, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("netlink: unexpected answer % x", answer[:n])
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return fmt.Errorf("netlink: request %d: %w", kind, unix.Errno(errno))
	}
	return nil
}

// newVeth makes a pair of interfaces, the second one in the namespace of fd.
func newVeth(name, peer string, fd int) error {
	info := unix.IfInfomsg{}
	far := append(append([]byte{}, bytesOf(&info)...), attribute(unix.IFLA_IFNAME, text(peer))...)
	far = append(far, attribute(unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(fd)))...)
	const vethInfoPeer = 1 // VETH_INFO_PEER of linux/veth.h
	data := attribute(vethInfoPeer, far)
	link := append(attribute(unix.IFLA_INFO_KIND, text("veth")), attribute(unix.IFLA_INFO_DATA, data)...)
	return netlink(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, bytesOf(&info),
		attribute(unix.IFLA_IFNAME, text(name)), attribute(unix.IFLA_LINKINFO, link))
}

// moveInterface moves an interface of the calling thread's namespace to the one of fd.
func moveInterface(name string, fd int) error {
	index, err := interfaceIndex(name)
	if err != nil {
		return err
	}
	info := unix.IfInfomsg{Index: int32(index)}
	return netlink(unix.RTM_NEWLINK, 0, bytesOf(&info),
		attribute(unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(fd))))
}

// address gives an interface an address and switches it on.
func address(name string, ip net.IP, prefix uint8) error {
	// SIOCGIFINDEX asks the calling thread's namespace; package net might ask another one's.
	index, err := interfaceIndex(name)
	if err != nil {
		return err
	}
	a := unix.IfAddrmsg{Family: unix.AF_INET, Prefixlen: prefix, Index: uint32(index)}
	if err := netlink(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, bytesOf(&a),
		attribute(unix.IFA_LOCAL, ip.To4()), attribute(unix.IFA_ADDRESS, ip.To4())); err != nil {
		return err
	}
	up := unix.IfInfomsg{Index: int32(index), Flags: unix.IFF_UP, Change: unix.IFF_UP}
	return netlink(unix.RTM_NEWLINK, 0, bytesOf(&up))
}

func interfaceIndex(name string) (int, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, request); err != nil {
		return 0, fmt.Errorf("interface %s: %w", name, err)
	}
	return int(request.Uint32()), nil
}
