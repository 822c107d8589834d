// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"livedump.io/test/guest"
	"livedump.io/test/load/provide"
)

// allLoads is what -load is for all of them.
var allLoads = []string{"all"}

// nicLoads send through network devices, which the guest must have.
var nicLoads = func() []string {
	var names []string
	for _, n := range provide.NICs {
		names = append(names, n.Load)
	}
	return names
}()

// nicModels are QEMU's models of the network devices that the loads need.
func nicModels(kernel *guest.Kernel, loads []string) []string {
	var wanted []string
	for _, name := range loads {
		wanted = append(wanted, strings.Split(name, "+")...)
	}
	var models []string
	for _, n := range provide.NICsOf(kernel) {
		if slices.Contains(wanted, n.Load) || slices.Equal(loads, allLoads) {
			models = append(models, n.Model)
		}
	}
	return models
}

// lacksNIC says whether a load sends through network devices that the kernel has no driver for.
func lacksNIC(kernel *guest.Kernel, load string) bool {
	return slices.Contains(nicLoads, load) &&
		!slices.ContainsFunc(provide.NICsOf(kernel), func(n provide.NIC) bool { return n.Load == load })
}
