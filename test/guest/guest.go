// SPDX-License-Identifier: Apache-2.0

// Package guest boots Debian's kernels in QEMU for tests and runs commands in
// them. A guest has a root in memory or on a disk, a log of its serial console,
// and a virtio-serial port over which commands run and files move, so that a
// test needs no network and no shell prompt.
package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"livedump.io/test/guest/wire"
)

// Config says what guest to boot. The zero value of a field is a sane default.
type Config struct {
	// Kernel is required.
	Kernel *Kernel
	// Dir keeps the console's log and the initramfs. Empty: a temporary
	// directory, which Stop removes.
	Dir string
	// Console is the file of the serial console's log; empty: console.log in Dir.
	Console string
	// MemoryMiB is the guest's RAM; 0: 1024.
	MemoryMiB int
	// CPUs is the number of virtual CPUs; 0: 2.
	CPUs int
	// NUMANodes share memory and CPUs evenly; 0: no NUMA at all.
	NUMANodes int
	// CPU is QEMU's CPU model with flags; empty: max.
	CPU string
	// Append is added to the kernel's command line.
	Append []string
	// Modules are loaded at boot, with what they need, after virtio's own.
	Modules []string
	// Files are put into the initramfs, which is the root unless RootDisk is set.
	Files []File
	// RootDisk is an ext4 image (see BuildDisk) that becomes /. The guest writes
	// to a temporary overlay: the image does not change.
	RootDisk string
	// Disks appear as /dev/vda, /dev/vdb, ..., after RootDisk if there is one.
	Disks []Disk
	// HostForward are TCP ports to forward, as "127.0.0.1:10250:10250" (host
	// address, host port, guest port). Not nil: user networking, in which the
	// guest is 10.0.2.15 and reaches the host's loopback as 10.0.2.2.
	HostForward []string
	// NICPairs are QEMU models of network devices. Of each there are two, on a hub that nothing else is on.
	NICPairs []string
	// IOMMU adds an Intel IOMMU that translates for the network devices of NICPairs. The other virtio devices go past it.
	IOMMU bool
	// Hostname is set before anything runs; empty: guest.
	Hostname string
	// NoVMCoreInfo leaves out the device by which the guest tells QEMU where its
	// VMCOREINFO is; Dump needs it.
	NoVMCoreInfo bool
	// CountInstructions makes the guest's time go by the instructions that it
	// executes, one nanosecond each, and not by the host's clock: what is measured does
	// not depend on what else the host does. One thread runs all CPUs then; without KVM only.
	CountInstructions bool
	// ExtraArgs are added to QEMU's command line.
	ExtraArgs []string
	// BootTimeout is how long the guest may take until it answers; 0: three minutes.
	BootTimeout time.Duration
}

// Disk is a virtio block device.
type Disk struct {
	// Image is a raw image on the host.
	Image string
	// Serial is what the guest sees as the disk's serial (20 bytes at most).
	Serial string
	// ReadOnly makes the guest's writes fail.
	ReadOnly bool
	// Snapshot throws the guest's writes away at the end.
	Snapshot bool
}

// Guest is a running guest.
type Guest struct {
	config   Config
	dir      string
	ownDir   bool
	conn     *wire.Conn
	control  *qmp
	cmd      *exec.Cmd
	greeting wire.Greeting

	// exited is closed when QEMU has ended; exitErr is set before.
	exited  chan struct{}
	exitErr error

	mu      sync.Mutex
	next    uint32
	streams map[uint32]*hostStream
	broken  error
	events  []string
}

// defaultModules are what every guest needs to be talked to.
var defaultModules = []string{"virtio_pci", "virtio_blk", "virtio_console"}

// UsesKVM says whether guests run on the processor itself. A /dev/kvm alone
// proves nothing: it may be there on a machine whose processor offers no
// virtualisation to its guests, where QEMU then hangs.
var UsesKVM = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return false
	}
	able := false
	for _, line := range strings.Split(string(b), "\n") {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			for _, flag := range strings.Fields(flags) {
				able = able || flag == "vmx" || flag == "svm"
			}
			break
		}
	}
	if !able {
		return false
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
})

// Start boots a guest and returns when it answers. The guest ends with ctx.
func Start(ctx context.Context, config Config) (g *Guest, err error) {
	if config.Kernel == nil {
		return nil, errors.New("guest: no kernel given")
	}
	if config.MemoryMiB == 0 {
		config.MemoryMiB = 1024
	}
	if config.CPUs == 0 {
		config.CPUs = 2
	}
	if config.CPU == "" {
		config.CPU = "max"
	}
	if config.Hostname == "" {
		config.Hostname = "guest"
	}
	if config.BootTimeout == 0 {
		config.BootTimeout = 3 * time.Minute
	}
	g = &Guest{config: config, dir: config.Dir, exited: make(chan struct{}), streams: map[uint32]*hostStream{}}
	if g.dir == "" {
		if g.dir, err = os.MkdirTemp("", "livedump-guest-"); err != nil {
			return nil, err
		}
		g.ownDir = true
	} else if err := os.MkdirAll(g.dir, 0o755); err != nil {
		return nil, err
	}
	// Not g: a return of nil and an error has set it to nil by then.
	begun := g
	defer func() {
		if err != nil {
			err = errors.Join(err, begun.Stop())
		}
	}()

	initramfs := filepath.Join(g.dir, "initramfs.cpio")
	files, err := g.rootFiles(ctx)
	if err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	if err := writeInitramfs(initramfs, files); err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}

	// QEMU connects to our sockets, so they are there from its first moment. They
	// have a short path of their own: socket paths are limited to 107 bytes.
	sockets, err := os.MkdirTemp("", "ldg-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(sockets)
	portListener, err := net.Listen("unix", filepath.Join(sockets, "port"))
	if err != nil {
		return nil, err
	}
	defer portListener.Close()
	qmpListener, err := net.Listen("unix", filepath.Join(sockets, "qmp"))
	if err != nil {
		return nil, err
	}
	defer qmpListener.Close()

	// One report of KASAN must not hide the next. With five levels of page tables an interrupt at the wrong moment of
	// the boot makes it report without end: identify_boot_cpu() clears the CPU's features with interrupts on, and which
	// addresses have shadow depends on one of them.
	if kasan, err := config.Kernel.Configured("KASAN"); err != nil {
		return nil, err
	} else if kasan {
		g.config.Append = append([]string{"kasan_multi_shot", "no5lvl"}, config.Append...)
	}
	if err := g.startQEMU(ctx, initramfs, sockets); err != nil {
		return nil, err
	}
	boot, cancel := context.WithTimeout(ctx, config.BootTimeout)
	defer cancel()
	qmpConn, err := g.accept(boot, qmpListener)
	if err != nil {
		return nil, err
	}
	if g.control, err = newQMP(boot, qmpConn, g.event); err != nil {
		return nil, err
	}
	portConn, err := g.accept(boot, portListener)
	if err != nil {
		return nil, err
	}
	g.conn = wire.NewConn(portConn)
	hello := make(chan error, 1)
	go g.receive(hello)
	select {
	case err := <-hello:
		if err != nil {
			return nil, g.explain(fmt.Errorf("guest did not boot: %w", err))
		}
	case <-g.exited:
		return nil, g.explain(fmt.Errorf("guest did not boot: QEMU ended: %w", g.exitErr))
	case <-boot.Done():
		return nil, g.explain(fmt.Errorf("guest did not boot: %w", boot.Err()))
	}
	return g, nil
}

// rootFiles is what the initramfs holds.
func (g *Guest) rootFiles(ctx context.Context) ([]File, error) {
	bin, err := buildInit(ctx, g.dir)
	if err != nil {
		return nil, err
	}
	names := append([]string{}, defaultModules...)
	if !g.config.NoVMCoreInfo {
		names = append(names, "qemu_fw_cfg") // it writes the note
	}
	if g.config.HostForward != nil {
		names = append(names, "virtio_net")
	}
	names = append(names, g.config.Modules...)
	modules, err := g.config.Kernel.ModuleFiles(names...)
	if err != nil {
		return nil, err
	}
	files := []File{{Path: "/init", Source: bin, Mode: 0o755}}
	if g.config.RootDisk == "" {
		files = append(files, BusyboxFiles()...)
	}
	var list strings.Builder
	for _, module := range modules {
		file := path.Join("/lib/modules", g.config.Kernel.Release, module)
		fmt.Fprintln(&list, file)
		files = append(files, File{Path: file, Source: filepath.Join(g.config.Kernel.ModulesDir(), module)})
	}
	files = append(files, File{Path: "/etc/guest/modules", Data: []byte(list.String())})
	return append(files, g.config.Files...), nil
}

// BusyboxFiles are busybox and the few files of /etc that programs ask for. PID 1
// links busybox's applets at boot, where there is no other program of the name.
func BusyboxFiles() []File {
	return []File{
		{Path: "/bin/busybox", Source: "/bin/busybox", Mode: 0o755},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
		{Path: "/etc/hosts", Data: []byte("127.0.0.1 localhost\n")},
		{Path: "/root", Dir: true},
		{Path: "/var/log", Dir: true},
	}
}

// buildInit builds the guest's PID 1 for the processor, free of shared libraries.
func buildInit(ctx context.Context, dir string) (string, error) {
	root, err := RepoRoot()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "./test/guest/init")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the guest's init: %w: %s", err, out)
	}
	return bin, nil
}

func (g *Guest) startQEMU(ctx context.Context, initramfs, sockets string) error {
	if _, err := Hack(ctx, "install-host-packages", "busybox-static", "e2fsprogs"); err != nil {
		return err
	}
	program, err := Hack(ctx, "debian-qemu")
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(g.dir, "qemu.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, program, g.qemuArgs(initramfs, sockets)...)
	cmd.Stdout, cmd.Stderr = log, log
	// An own process group: ^C in a terminal is for the test, which then stops QEMU.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		// The parent of Pdeathsig is a thread; this one lives as long as QEMU.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		if err == nil {
			err = errors.New("exit status 0")
		}
		g.exitErr = err
		close(g.exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	g.cmd = cmd
	return nil
}

func (g *Guest) qemuArgs(initramfs, sockets string) []string {
	c := g.config
	accel := "tcg,thread=multi"
	switch {
	case c.CountInstructions:
		accel = "tcg,thread=single"
	case UsesKVM():
		accel = "kvm"
	}
	// panic=-1 with -no-reboot: a panic ends QEMU, and with it the test, at once.
	words := []string{"console=ttyS0", "panic=-1", "guest.hostname=" + c.Hostname}
	if c.HostForward != nil {
		words = append(words, "guest.ip=user")
	}
	if c.IOMMU {
		words = append(words, "intel_iommu=on")
	}
	var drives []Disk
	if c.RootDisk != "" {
		words = append(words, "guest.root=/dev/vda")
		drives = append(drives, Disk{Image: c.RootDisk, Snapshot: true})
	}
	drives = append(drives, c.Disks...)
	words = append(words, c.Append...)
	args := []string{
		"-accel", accel, "-machine", "q35", "-cpu", c.CPU,
		"-smp", smp(c), "-m", strconv.Itoa(c.MemoryMiB) + "M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", c.Kernel.Image(), "-initrd", initramfs, "-append", strings.Join(words, " "),
		"-chardev", "file,id=console,path=" + strings.ReplaceAll(g.consolePath(), ",", ",,"),
		"-serial", "chardev:console",
		"-chardev", "socket,id=qmp,path=" + filepath.Join(sockets, "qmp"),
		"-mon", "chardev=qmp,mode=control",
		// As many ports as there are, the first being the console's: each has two rings that the stop copies.
		"-device", "virtio-serial-pci,max_ports=2",
		"-chardev", "socket,id=port,path=" + filepath.Join(sockets, "port"),
		"-device", "virtserialport,chardev=port,name=" + wire.PortName,
	}
	args = append(args, numaArgs(c)...)
	if c.IOMMU {
		// Before the devices that it is for. Without KVM the timer does not get through its interrupt remapping.
		args = append([]string{"-device", "intel-iommu,intremap=off"}, args...)
	}
	if c.CountInstructions {
		args = append(args, "-icount", "shift=0")
	}
	if !c.NoVMCoreInfo {
		args = append(args, "-device", "vmcoreinfo")
	}
	for i, disk := range drives {
		id := fmt.Sprintf("disk%d", i)
		drive := fmt.Sprintf("file=%s,if=none,id=%s,format=raw,discard=unmap", strings.ReplaceAll(disk.Image, ",", ",,"), id)
		if disk.Snapshot {
			drive += ",snapshot=on"
		}
		if disk.ReadOnly {
			drive += ",readonly=on"
		}
		device := "virtio-blk-pci,drive=" + id
		if disk.Serial != "" {
			device += ",serial=" + disk.Serial
		}
		args = append(args, "-drive", drive, "-device", device)
	}
	if c.HostForward != nil {
		netdev := "user,id=net"
		for _, forward := range c.HostForward {
			host, guestPort := forward, ""
			if i := strings.LastIndex(forward, ":"); i >= 0 {
				host, guestPort = forward[:i], forward[i+1:]
			}
			netdev += ",hostfwd=tcp:" + host + "-:" + guestPort
		}
		args = append(args, "-netdev", netdev, "-device", "virtio-net-pci,netdev=net")
	}
	args = append(args, nicArgs(c)...)
	return append(args, c.ExtraArgs...)
}

func nicArgs(c Config) []string {
	var args []string
	for hub, model := range c.NICPairs {
		if c.IOMMU && strings.HasPrefix(model, "virtio-") {
			model += ",iommu_platform=on,disable-legacy=on"
		}
		for _, side := range []string{"a", "b"} {
			id := fmt.Sprintf("hub%d%s", hub, side)
			args = append(args, "-netdev", fmt.Sprintf("hubport,id=%s,hubid=%d", id, hub), "-device", model+",netdev="+id)
		}
	}
	return args
}

// smp gives each NUMA node a socket, where that comes out even: the kernel doubts a machine in
// which a socket is in two nodes.
func smp(c Config) string {
	if c.NUMANodes > 0 && c.CPUs%c.NUMANodes == 0 {
		return fmt.Sprintf("%d,sockets=%d", c.CPUs, c.NUMANodes)
	}
	return strconv.Itoa(c.CPUs)
}

// numaArgs shares memory and CPUs among nodes; the last one gets what is left.
func numaArgs(c Config) []string {
	var args []string
	for node := range c.NUMANodes {
		memory, first, end := c.MemoryMiB/c.NUMANodes, node*c.CPUs/c.NUMANodes, (node+1)*c.CPUs/c.NUMANodes
		if node == c.NUMANodes-1 {
			memory = c.MemoryMiB - node*memory
		}
		numa := fmt.Sprintf("node,nodeid=%d,memdev=node%d", node, node)
		if first < end {
			numa += fmt.Sprintf(",cpus=%d-%d", first, end-1)
		}
		args = append(args, "-object", fmt.Sprintf("memory-backend-ram,id=node%d,size=%dM", node, memory), "-numa", numa)
	}
	return args
}

func (g *Guest) accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	accepted := make(chan result, 1)
	go func() {
		conn, err := l.Accept()
		accepted <- result{conn, err}
	}()
	select {
	case r := <-accepted:
		return r.conn, r.err
	case <-g.exited:
		return nil, g.explain(fmt.Errorf("QEMU ended: %w", g.exitErr))
	case <-ctx.Done():
		return nil, g.explain(ctx.Err())
	}
}

// explain adds the end of what QEMU and the guest's console said to an error.
func (g *Guest) explain(err error) error {
	for _, file := range []string{filepath.Join(g.dir, "qemu.log"), g.consolePath()} {
		b, readErr := os.ReadFile(file)
		if readErr != nil || len(b) == 0 {
			continue
		}
		const tail = 2000
		if len(b) > tail {
			b = b[len(b)-tail:]
		}
		err = fmt.Errorf("%w\n--- %s:\n%s", err, filepath.Base(file), strings.TrimSpace(string(b)))
	}
	return err
}

func (g *Guest) event(name string, _ json.RawMessage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, name)
}

func (g *Guest) consolePath() string {
	if g.config.Console != "" {
		return g.config.Console
	}
	return filepath.Join(g.dir, "console.log")
}

// ConsolePath returns the file of the serial console's log.
func (g *Guest) ConsolePath() string { return g.consolePath() }

// ConsoleLog returns what the guest printed on its serial console so far.
func (g *Guest) ConsoleLog() (string, error) {
	b, err := os.ReadFile(g.consolePath())
	return string(b), err
}

// CheckConsole reports trouble of the guest's kernel so far; see CheckConsole.
func (g *Guest) CheckConsole() error {
	log, err := g.ConsoleLog()
	if err != nil {
		return err
	}
	return CheckConsole(log)
}

// Release returns the guest's kernel release, as it reported it.
func (g *Guest) Release() string { return g.greeting.Release }

// PID returns QEMU's process.
func (g *Guest) PID() int { return g.cmd.Process.Pid }

// Exited is closed when QEMU has ended, for instance after a panic.
func (g *Guest) Exited() <-chan struct{} { return g.exited }

// Reset restarts the machine as its reset button does. Start's -no-reboot turns
// that into its end; it is for tests that crash a guest.
func (g *Guest) Reset(ctx context.Context) error {
	_, err := g.control.execute(ctx, "system_reset", nil)
	return err
}

// DumpFormat is a format of QEMU's own dumps.
type DumpFormat string

// Formats of Dump.
const (
	DumpELF  DumpFormat = "elf"
	DumpZlib DumpFormat = "kdump-zlib"
)

// Dump has QEMU write the guest's memory to a file on the host, with the guest
// stopped meanwhile. It takes as long as writing all memory takes.
func (g *Guest) Dump(ctx context.Context, file string, format DumpFormat) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	_, err = g.control.execute(ctx, "dump-guest-memory", map[string]any{
		"paging": false, "protocol": "file:" + file, "format": string(format),
	})
	return err
}

// Stop ends the guest at once and frees what it held. Stopping a guest that has
// ended is no error.
func (g *Guest) Stop() error {
	if g.cmd != nil {
		_ = g.cmd.Process.Kill()
		<-g.exited
	}
	if g.ownDir {
		return os.RemoveAll(g.dir)
	}
	// The console's log is what a test keeps.
	for _, name := range []string{"initramfs.cpio", "init"} {
		if err := os.Remove(filepath.Join(g.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
