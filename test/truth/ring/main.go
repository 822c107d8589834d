// SPDX-License-Identifier: Apache-2.0

// ring has the kernel allocate a packet socket's ring, which is memory of the
// kernel's own, and prints "ring: ready". After a line on its input it maps the
// ring, which it had not before, writes all of it, and prints
//
//	ring: wrote PFN,PFN,...
//
// with the page frames in hexadecimal. It ends with its input.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/test/truth/pagemap"
)

const (
	blockBytes = 16 << 10
	blocks     = 8
	frameBytes = 2 << 10
	written    = 0xa5
)

func main() {
	if err := run(); err != nil {
		fmt.Println("ring: FAILED", err)
		os.Exit(1)
	}
}

func run() error {
	// No protocol: nothing is ever received, so nobody but this program writes the ring.
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	req := unix.TpacketReq{
		Block_size: blockBytes, Block_nr: blocks,
		Frame_size: frameBytes, Frame_nr: blocks * blockBytes / frameBytes,
	}
	if err := unix.SetsockoptTpacketReq(socket, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("ring of a packet socket: %w", err)
	}
	fmt.Println("ring: ready")
	input := bufio.NewReader(os.Stdin)
	if _, err := input.ReadString('\n'); err != nil {
		return err
	}
	ring, err := unix.Mmap(socket, 0, blocks*blockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap the ring: %w", err)
	}
	for i := range ring {
		ring[i] = written
	}
	frames, err := pagemap.FramesOf(ring)
	if err != nil {
		return err
	}
	fmt.Println("ring: wrote", strings.Join(frames, ","))
	_, err = io.Copy(io.Discard, input)
	return err
}
