// SPDX-License-Identifier: Apache-2.0

package provide

import "livedump.io/test/guest"

// NIC is a model of network device that a load sends through.
type NIC struct {
	// Load is the load's name.
	Load string
	// Model is QEMU's name of the device; two of them on a hub are needed (guest.Config.NICPairs).
	Model string
	// Module and Driver are the kernel's names.
	Module, Driver string
	// NeedsIOMMU: without one nobody knows what the device writes, and a dump can't say so of its pages.
	NeedsIOMMU bool
}

// NICs are all models that there are loads for.
var NICs = []NIC{
	{Load: "virtio-net", Model: "virtio-net-pci", Module: "virtio_net", Driver: "virtio_net"},
	{Load: "vmxnet3", Model: "vmxnet3", Module: "vmxnet3", Driver: "vmxnet3", NeedsIOMMU: true},
	{Load: "e1000e", Model: "e1000e", Module: "e1000e", Driver: "e1000e", NeedsIOMMU: true},
}

// NICsOf are those that a kernel has a driver for; none if it has no network namespaces.
func NICsOf(kernel *guest.Kernel) []NIC {
	// The loads put each device into a namespace of its own. A kernel without a configuration can't be booted either.
	if namespaces, err := kernel.Configured("NET_NS"); err != nil || !namespaces {
		return nil
	}
	var has []NIC
	for _, n := range NICs {
		if _, err := kernel.ModuleFiles(n.Module); err == nil {
			has = append(has, n)
		}
	}
	return has
}
