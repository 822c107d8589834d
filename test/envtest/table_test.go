// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"livedump.io/api/v1alpha1"
)

// table asks for the LiveDumps as kubectl does: for a table, by name and column.
func (w *world) table() map[string]map[string]string {
	w.t.Helper()
	config := rest.CopyConfig(adminConfig)
	config.APIPath, config.GroupVersion = "/apis", &v1alpha1.GroupVersion
	config.NegotiatedSerializer = clientgoscheme.Codecs.WithoutConversion()
	c, err := rest.RESTClientFor(config)
	w.must(err)
	body, err := c.Get().Namespace(dumpNamespace).Resource("livedumps").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(w.ctx)
	w.must(err)
	table := &metav1.Table{}
	w.must(json.Unmarshal(body, table))
	rows := map[string]map[string]string{}
	for _, row := range table.Rows {
		cells := map[string]string{}
		for i, cell := range row.Cells {
			if number, ok := cell.(float64); ok {
				cell = int64(number)
			}
			if cell != nil {
				cells[table.ColumnDefinitions[i].Name] = fmt.Sprint(cell)
			}
		}
		rows[cells["Name"]] = cells
	}
	return rows
}
