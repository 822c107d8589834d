// SPDX-License-Identifier: Apache-2.0

package trial

import "flag"

// Guest is what the programs that run in a guest are asked for in the same words.
type Guest struct {
	Series    string // of the kernel
	MemoryMiB int
	CPUs      int
	Out       string // directory for results and consoles
	Bin       string // directory with what the Makefile has built
}

// Flags makes flags of them, with what a program takes if nothing is said. contents are what it needs of bin.
func (g *Guest) Flags(memoryMiB, cpus int, out, contents string) {
	flag.StringVar(&g.Series, "kernel", "6.1", "kernel `series`")
	flag.IntVar(&g.MemoryMiB, "ram", memoryMiB, "memory of each guest in `MiB`")
	flag.IntVar(&g.CPUs, "cpus", cpus, "virtual CPUs of each guest")
	flag.StringVar(&g.Out, "out", out, "`directory` for results and consoles")
	flag.StringVar(&g.Bin, "bin", "bin", "`directory` with "+contents)
}
