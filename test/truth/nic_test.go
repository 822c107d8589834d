// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"

	"livedump.io/test/load/provide"
)

func TestNICModels(t *testing.T) {
	virtio, vmxnet3 := provide.NICs[0], provide.NICs[1]
	for _, test := range []struct {
		loads string
		iommu bool
		has   []provide.NIC
		want  []string
	}{
		{"fork,slab", false, provide.NICs, nil},
		{"fork+virtio-net,slab", false, provide.NICs, []string{virtio.Model}},
		{"vmxnet3", false, provide.NICs, []string{vmxnet3.Model}},
		{"all", false, provide.NICs, []string{virtio.Model}},
		{"all", true, []provide.NIC{virtio, vmxnet3}, []string{virtio.Model, vmxnet3.Model}},
		{"vmxnet3", true, []provide.NIC{virtio}, nil},
	} {
		o := options{loads: names(test.loads), iommu: test.iommu}
		if got := o.nicModels(test.has); !slices.Equal(got, test.want) {
			t.Errorf("%s, IOMMU %t: %q, want %q", test.loads, test.iommu, got, test.want)
		}
	}
}
