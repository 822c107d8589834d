// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	bpfPrograms  = 24 // loaded at once; the oldest is replaced
	bpfMaxSteps  = 1500
	bpfJIT       = "/proc/sys/net/core/bpf_jit_enable"
	bpfHashItems = 200
)

var bpfLoad = load{
	name:  "bpf",
	about: "BPF: socket filters of many lengths through the JIT, run and checked; hash and per-CPU maps",
	start: func(e *env) (*work, error) {
		if err := e.set(bpfJIT, "1"); err != nil {
			return nil, err
		}
		var programs [bpfPrograms]bpfProgram
		e.atEnd(func() error {
			var errs []error
			for _, p := range programs {
				errs = append(errs, p.close())
			}
			return errors.Join(errs...)
		})
		return &work{round: func(_ context.Context, n int64) (int, error) {
			p := &programs[n%bpfPrograms]
			if p.fd != 0 {
				if err := p.run(); err != nil {
					return 0, err
				}
				if err := p.close(); err != nil {
					return 0, err
				}
			}
			var err error
			if *p, err = newBPFProgram(uint64(n)); err != nil {
				return 0, err
			}
			if err := p.run(); err != nil {
				return 1, err
			}
			if n%4 == 0 {
				return 3, errors.Join(bpfHash(uint64(n)), bpfPerCPU(uint64(n)))
			}
			return 1, nil
		}}, nil
	},
}

// bpf is bpf(2). attr is a structure that begins with the fields of the command's
// part of union bpf_attr; what follows is zero to the kernel.
func bpf[T any](command int, attr *T) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR, unix.EAGAIN:
			// A signal of the Go runtime has interrupted the verifier.
		default:
			return 0, errno
		}
	}
}

// bpfInsn is struct bpf_insn.
type bpfInsn struct {
	code uint8
	regs uint8
	off  int16
	imm  int32
}

// A program that computes a number, which is known here too.
type bpfProgram struct {
	fd   int
	want uint32
}

func newBPFProgram(seed uint64) (bpfProgram, error) {
	random := rand.New(rand.NewPCG(seed, 1))
	acc := random.Uint32()
	code := []bpfInsn{{code: unix.BPF_ALU | unix.BPF_MOV | unix.BPF_K, imm: int32(acc)}}
	for range 1 + random.IntN(bpfMaxSteps) {
		k := random.Uint32()
		switch random.IntN(3) {
		case 0:
			acc += k
			code = append(code, bpfInsn{code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K, imm: int32(k)})
		case 1:
			acc *= k | 1
			code = append(code, bpfInsn{code: unix.BPF_ALU | unix.BPF_MUL | unix.BPF_K, imm: int32(k | 1)})
		case 2:
			acc ^= k
			code = append(code, bpfInsn{code: unix.BPF_ALU | unix.BPF_XOR | unix.BPF_K, imm: int32(k)})
		}
	}
	code = append(code, bpfInsn{code: unix.BPF_JMP | unix.BPF_EXIT})
	license := []byte("GPL\x00")
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&code[0])
	pin.Pin(&license[0])
	attr := struct {
		progType, insnCount      uint32
		insns, license           uint64
		logLevel, logSize        uint32
		logBuf                   uint64
		kernelVersion, progFlags uint32
	}{
		progType: unix.BPF_PROG_TYPE_SOCKET_FILTER, insnCount: uint32(len(code)),
		insns: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, &attr)
	if err != nil {
		return bpfProgram{}, fmt.Errorf("load a program of %d instructions: %w", len(code), err)
	}
	return bpfProgram{fd: fd, want: acc}, nil
}

func (p bpfProgram) run() error {
	packet := make([]byte, 64) // an Ethernet header is the least
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&packet[0])
	attr := struct {
		fd, result      uint32
		inSize, outSize uint32
		in, out         uint64
		repeat, took    uint32
	}{fd: uint32(p.fd), inSize: uint32(len(packet)), in: uint64(uintptr(unsafe.Pointer(&packet[0]))), repeat: 1}
	if _, err := bpf(unix.BPF_PROG_TEST_RUN, &attr); err != nil {
		return fmt.Errorf("run a program: %w", err)
	}
	if attr.result != p.want {
		return fmt.Errorf("a program gave %#x, want %#x", attr.result, p.want)
	}
	return nil
}

func (p *bpfProgram) close() error {
	if p.fd == 0 {
		return nil
	}
	fd := p.fd
	p.fd = 0
	return unix.Close(fd)
}

// A map and its values' size as system calls see it.
type bpfMap struct {
	fd    int
	value int
}

func newBPFMap(kind, valueBytes, entries uint32, seenBytes int) (bpfMap, error) {
	attr := struct{ kind, key, value, entries, flags uint32 }{kind, 4, valueBytes, entries, 0}
	fd, err := bpf(unix.BPF_MAP_CREATE, &attr)
	if err != nil {
		return bpfMap{}, fmt.Errorf("create a map of %d entries of %d bytes: %w", entries, valueBytes, err)
	}
	return bpfMap{fd, seenBytes}, nil
}

// access looks an element up or changes it.
func (m bpfMap) access(command int, key uint32, value []byte) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&key)
	attr := struct {
		fd, _             uint32
		key, value, flags uint64
	}{fd: uint32(m.fd), key: uint64(uintptr(unsafe.Pointer(&key)))}
	if value != nil {
		pin.Pin(&value[0])
		attr.value = uint64(uintptr(unsafe.Pointer(&value[0])))
	}
	if _, err := bpf(command, &attr); err != nil {
		return fmt.Errorf("map element %d, command %d: %w", key, command, err)
	}
	return nil
}

func (m bpfMap) put(key uint32, seed uint64) error {
	value := make([]byte, m.value)
	for at := 0; at < len(value); at += 8 {
		binary.LittleEndian.PutUint64(value[at:], seed^uint64(at)<<32^uint64(key))
	}
	return m.access(unix.BPF_MAP_UPDATE_ELEM, key, value)
}

func (m bpfMap) check(key uint32, seed uint64) error {
	value := make([]byte, m.value)
	if err := m.access(unix.BPF_MAP_LOOKUP_ELEM, key, value); err != nil {
		return err
	}
	for at := 0; at < len(value); at += 8 {
		if got, want := binary.LittleEndian.Uint64(value[at:]), seed^uint64(at)<<32^uint64(key); got != want {
			return fmt.Errorf("map element %d holds %#x at byte %d, want %#x", key, got, at, want)
		}
	}
	return nil
}

func (m bpfMap) close() error { return unix.Close(m.fd) }

func bpfHash(seed uint64) (err error) {
	m, err := newBPFMap(unix.BPF_MAP_TYPE_HASH, 256, 2*bpfHashItems, 256)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	for key := range uint32(bpfHashItems) {
		if err := m.put(key, seed); err != nil {
			return err
		}
	}
	for key := uint32(0); key < bpfHashItems; key += 2 {
		if err := m.access(unix.BPF_MAP_DELETE_ELEM, key, nil); err != nil {
			return err
		}
	}
	for key := uint32(1); key < bpfHashItems; key += 2 {
		if err := m.check(key, seed); err != nil {
			return err
		}
	}
	return nil
}

// bpfPerCPU fills per-CPU values, which the kernel takes from per-CPU chunks.
func bpfPerCPU(seed uint64) (err error) {
	cpus, err := possibleCPUs()
	if err != nil {
		return err
	}
	const bytes = 512
	m, err := newBPFMap(unix.BPF_MAP_TYPE_PERCPU_ARRAY, bytes, 16, bytes*cpus)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	for key := range uint32(16) {
		if err := m.put(key, seed); err != nil {
			return err
		}
	}
	for key := range uint32(16) {
		if err := m.check(key, seed); err != nil {
			return err
		}
	}
	return nil
}

// possibleCPUs counts the CPUs that a per-CPU value has room for.
func possibleCPUs() (int, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	list, err := parseCPUs(string(b))
	return len(list), err
}
