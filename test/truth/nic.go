// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

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
func (o *options) nicModels(has []provide.NIC) []string {
	var wanted []string
	for _, name := range o.loads {
		wanted = append(wanted, strings.Split(name, "+")...)
	}
	all := slices.Equal(o.loads, allLoads)
	var models []string
	for _, n := range has {
		if slices.Contains(wanted, n.Load) || all && !o.lacksNIC(has, n.Load) {
			models = append(models, n.Model)
		}
	}
	return models
}

// lacksNIC says whether a load is to be left out of all: it sends through network devices that the kernel has no driver
// for, or that need an IOMMU which is not there.
func (o *options) lacksNIC(has []provide.NIC, load string) bool {
	return slices.Contains(nicLoads, load) && !slices.ContainsFunc(has, func(n provide.NIC) bool {
		return n.Load == load && (o.iommu || !n.NeedsIOMMU)
	})
}

// dmaPages are the module's counts of pages that devices may write, by the way in which it found them.
func (b *bench) dmaPages(ctx context.Context) (map[string]uint64, error) {
	pages := map[string]uint64{}
	for _, name := range []string{"page_pool", "buffers", "mapped", "handed"} {
		text, err := b.guest.ReadFile(ctx, "/sys/class/misc/livedump/dma/"+name)
		if err != nil {
			return nil, err
		}
		if pages[name], err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return nil, err
		}
	}
	return pages, nil
}
