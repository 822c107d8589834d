// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/kdump"
)

// object is a LiveDump as a user writes it.
func object(t *testing.T, name, spec string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	text := fmt.Sprintf(`{"apiVersion":"livedump.io/v1alpha1","kind":"LiveDump","metadata":{"namespace":%q,"name":%q},"spec":%s}`, dumpNamespace, name, spec)
	if err := json.Unmarshal([]byte(text), u); err != nil {
		t.Fatal(err)
	}
	return u
}

// What users see of a bad spec, at once and in words.
func TestBadSpecsAreRefused(t *testing.T) {
	const target = `"target":{"persistentVolumeClaim":{"claimName":"c"}}`
	tests := map[string]struct{ spec, message string }{
		"no spec at all":         {`{}`, "spec.nodeName: Required value"},
		"no node":                {`{` + target + `}`, "spec.nodeName: Required value"},
		"empty node":             {`{"nodeName":"",` + target + `}`, "spec.nodeName in body should be at least 1 chars long"},
		"bad node":               {`{"nodeName":"../x",` + target + `}`, "nodeName must be a valid object name"},
		"long node":              {`{"nodeName":"` + strings.Repeat("n", 254) + `",` + target + `}`, "may not be more than 253"},
		"no target":              {`{"nodeName":"n"}`, "spec.target: Required value"},
		"empty target":           {`{"nodeName":"n","target":{}}`, "exactly one target must be set: persistentVolumeClaim"},
		"unknown target":         {`{"nodeName":"n","target":{"floppy":{}}}`, `unknown field "spec.target.floppy"`},
		"a store by http":        {`{"nodeName":"n","target":{"objectStorage":{"endpoint":"http://store.example","bucket":"dumps","credentialsSecretName":"s"}}}`, "endpoint must be https://HOST"},
		"a store with a path":    {`{"nodeName":"n","target":{"objectStorage":{"endpoint":"https://s/x","bucket":"dumps","credentialsSecretName":"s"}}}`, "endpoint must be https://HOST"},
		"a store, no Secret":     {`{"nodeName":"n","target":{"objectStorage":{"endpoint":"https://s:9","bucket":"dumps"}}}`, "credentialsSecretName: Required value"},
		"a store, ELF":           {`{"nodeName":"n","format":"ELF","target":{"objectStorage":{"endpoint":"https://s:9","bucket":"dumps","credentialsSecretName":"s"}}}`, "its format can only be Flattened"},
		"encrypted ELF":          {`{"nodeName":"n","format":"ELF",` + target + `,"encryption":{"recipients":["age1` + strings.Repeat("q", 58) + `"]}}`, "can only have the format Kdump"},
		"no claim":               {`{"nodeName":"n","target":{"persistentVolumeClaim":{}}}`, "spec.target.persistentVolumeClaim.claimName: Required value"},
		"empty claim":            {`{"nodeName":"n","target":{"persistentVolumeClaim":{"claimName":""}}}`, "claimName in body should be at least 1 chars long"},
		"bad claim":              {`{"nodeName":"n","target":{"persistentVolumeClaim":{"claimName":"a/b"}}}`, "claimName must be a valid object name"},
		"two targets":            {`{"nodeName":"n","target":{"persistentVolumeClaim":{"claimName":"c"},"stream":{"address":"a:1"}}}`, "exactly one target must be set"},
		"one of several claims":  {`{"nodeName":"n","target":{"persistentVolumeClaims":[{"claimName":"a"}]}}`, "spec.target.persistentVolumeClaims in body should have at least 2 items"},
		"too many claims":        {`{"nodeName":"n","target":{"persistentVolumeClaims":[` + claimItems(kdump.MaxParts+1) + `]}}`, "must have at most 16 items"},
		"a claim twice":          {`{"nodeName":"n","target":{"persistentVolumeClaims":[{"claimName":"a"},{"claimName":"b"},{"claimName":"a"}]}}`, "Duplicate value"},
		"bad name among several": {`{"nodeName":"n","target":{"persistentVolumeClaims":[{"claimName":"a"},{"claimName":"a/b"}]}}`, "claimName must be a valid object name"},
		"bad path among several": {`{"nodeName":"n","target":{"persistentVolumeClaims":[{"claimName":"a"},{"claimName":"b","path":"../x"}]}}`, "path must be relative"},
		"one claim and several":  {`{"nodeName":"n","target":{"persistentVolumeClaim":{"claimName":"c"},"persistentVolumeClaims":[` + claimItems(2) + `]}}`, "exactly one target must be set"},
		"several and a stream":   {`{"nodeName":"n","target":{"stream":{"address":"a:1"},"persistentVolumeClaims":[` + claimItems(2) + `]}}`, "exactly one target must be set"},
		"ELF in parts":           {`{"nodeName":"n","format":"ELF","target":{"persistentVolumeClaims":[` + claimItems(2) + `]}}`, "split among several claims can only have the format Kdump"},
		"flattened parts":        {`{"nodeName":"n","format":"Flattened","target":{"persistentVolumeClaims":[` + claimItems(2) + `]}}`, "split among several claims can only have the format Kdump"},
		"path out of the volume": {`{"nodeName":"n","target":{"persistentVolumeClaim":{"claimName":"c","path":"../x"}}}`, "path must be relative"},
		"path from the root":     {`{"nodeName":"n","target":{"persistentVolumeClaim":{"claimName":"c","path":"/x"}}}`, "path must be relative"},
		"path to a hidden file":  {`{"nodeName":"n","target":{"persistentVolumeClaim":{"claimName":"c","path":"a/.x"}}}`, "path must be relative"},
		"partial path":           {`{"nodeName":"n","target":{"persistentVolumeClaim":{"claimName":"c","path":"x.partial"}}}`, "not end with '.partial'"},
		"address without port":   {`{"nodeName":"n","target":{"stream":{"address":"receiver.example"}}}`, "address must be host:port"},
		"address with a path":    {`{"nodeName":"n","target":{"stream":{"address":"https://receiver.example:9300"}}}`, "address must be host:port"},
		"no address":             {`{"nodeName":"n","target":{"stream":{}}}`, "spec.target.stream.address: Required value"},
		"bad CA":                 {`{"nodeName":"n","target":{"stream":{"address":"a:1","tls":{"caBundle":"secret"}}}}`, "caBundle must be certificates in PEM"},
		"kdump to a stream":      {`{"nodeName":"n","target":{"stream":{"address":"a:1"}},"format":"Kdump"}`, "its format can only be Flattened"},
		"unknown format":         {`{"nodeName":"n",` + target + `,"format":"LKCD"}`, `spec.format: Unsupported value: "LKCD": supported values: "Kdump", "ELF", "Flattened"`},
		"little bandwidth":       {`{"nodeName":"n",` + target + `,"limits":{"bandwidth":"1000Ki"}}`, "bandwidth must be at least 1Mi"},
		"bandwidth in words":     {`{"nodeName":"n",` + target + `,"limits":{"bandwidth":"fast"}}`, "spec.limits.bandwidth"},
		"bandwidth as number":    {`{"nodeName":"n",` + target + `,"limits":{"bandwidth":1000}}`, "bandwidth must be at least 1Mi"},
		"no CPUs":                {`{"nodeName":"n",` + target + `,"limits":{"cpus":0}}`, "spec.limits.cpus in body should be greater than or equal to 1"},
		"unknown compression":    {`{"nodeName":"n",` + target + `,"compression":"Lz4"}`, `spec.compression: Unsupported value: "Lz4": supported values: "Zstd", "Zlib", "Snappy", "None"`},
		"unknown consistency":    {`{"nodeName":"n",` + target + `,"consistency":"Maybe"}`, `spec.consistency: Unsupported value: "Maybe": supported values: "Strict", "BestEffort"`},
		"unknown profile":        {`{"nodeName":"n",` + target + `,"content":{"profile":"All"}}`, `spec.content.profile: Unsupported value: "All": supported values: "Kernel", "Full"`},
		"unknown policy":         {`{"nodeName":"n",` + target + `,"overwritePolicy":"Always"}`, `spec.overwritePolicy: Unsupported value: "Always": supported values: "Never", "IfEmptyOrLiveDump"`},
		"unknown desired state":  {`{"nodeName":"n",` + target + `,"desiredState":"Pause"}`, `spec.desiredState: Unsupported value: "Pause": supported values: "Run", "Cancel"`},
		"timeout too short":      {`{"nodeName":"n",` + target + `,"timeoutSeconds":29}`, "spec.timeoutSeconds in body should be greater than or equal to 30"},
		"timeout too long":       {`{"nodeName":"n",` + target + `,"timeoutSeconds":86401}`, "spec.timeoutSeconds in body should be less than or equal to 86400"},
		"negative ttl":           {`{"nodeName":"n",` + target + `,"ttlSecondsAfterFinished":-1}`, "spec.ttlSecondsAfterFinished in body should be greater than or equal to 0"},
		"negative reserve":       {`{"nodeName":"n",` + target + `,"reserve":{"limitBytes":-1}}`, "spec.reserve.limitBytes in body should be greater than or equal to 0"},
		"no recipients":          {`{"nodeName":"n",` + target + `,"encryption":{"recipients":[]}}`, "spec.encryption.recipients in body should have at least 1 items"},
		"nonsense recipient":     {`{"nodeName":"n",` + target + `,"encryption":{"recipients":["` + strings.Repeat("x", 62) + `"]}}`, "spec.encryption.recipients[0] in body should match"},
		"private key":            {`{"nodeName":"n",` + target + `,"encryption":{"recipients":["AGE-SECRET-KEY-1` + strings.Repeat("Q", 58) + `"]}}`, "spec.encryption.recipients[0] in body should match"},
		"misspelt field":         {`{"nodeName":"n",` + target + `,"compresion":"Zstd"}`, `unknown field "spec.compresion"`},
	}
	// As kubectl does.
	strict := client.WithFieldValidation(admin, metav1.FieldValidationStrict)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := strict.Create(t.Context(), object(t, "bad", test.spec))
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), test.message) {
				t.Errorf("error: %v\nwant: %s", err, test.message)
			}
		})
	}
}

// claimItems are so many items of a list of claims.
func claimItems(n int) string {
	var items []string
	for i := range n {
		items = append(items, fmt.Sprintf(`{"claimName":"c-%d"}`, i))
	}
	return strings.Join(items, ",")
}

func TestDefaults(t *testing.T) {
	w := newWorld(t)
	u := object(t, "defaults", fmt.Sprintf(`{"nodeName":%q,"target":{"persistentVolumeClaim":{"claimName":%q}}}`, w.node, w.claim))
	w.must(admin.Create(t.Context(), u))
	t.Cleanup(func() { w.finish(u.GetName()) })
	spec := w.get(&v1alpha1.LiveDump{ObjectMeta: metav1.ObjectMeta{Namespace: dumpNamespace, Name: "defaults"}}).Spec
	if spec.Content.Profile != v1alpha1.ContentKernel || spec.Consistency != v1alpha1.ConsistencyStrict || spec.Compression != v1alpha1.CompressionZstd ||
		spec.TimeoutSeconds != 1800 || spec.OverwritePolicy != v1alpha1.OverwriteIfEmptyOrLiveDump || spec.DesiredState != v1alpha1.DesiredStateRun ||
		spec.Reserve != nil || spec.TTLSecondsAfterFinished != nil {
		t.Errorf("defaults: %+v", spec)
	}
}

// What is allowed must be.
func TestGoodSpecsAreAccepted(t *testing.T) {
	w := newWorld(t)
	claim := `"target":{"persistentVolumeClaim":{"claimName":"` + w.claim + `"}}`
	for name, spec := range map[string]string{
		"file":           `"format":"ELF","target":{"persistentVolumeClaim":{"claimName":"` + w.claim + `","path":"dumps/2026-01-02/a_b.c.elf"}}`,
		"stream":         `"target":{"stream":{"address":"receiver.example:9300","tls":{"serverName":"r","caBundle":"-----BEGIN CERTIFICATE-----\n"}}}`,
		"stream-ipv6":    `"format":"Flattened","target":{"stream":{"address":"[2001:db8::1]:9300"}}`,
		"stream-ipv4":    `"target":{"stream":{"address":"192.0.2.1:1"}}`,
		"bandwidth":      claim + `,"limits":{"bandwidth":"1.5Gi","cpus":2}`,
		"plain-number":   claim + `,"limits":{"bandwidth":200000000}`,
		"claims":         `"target":{"persistentVolumeClaims":[` + claimItems(2) + `]}`,
		"most-claims":    `"format":"Kdump","target":{"persistentVolumeClaims":[` + claimItems(kdump.MaxParts) + `]}`,
		"files-claims":   `"encryption":{"recipients":["age1` + strings.Repeat("q", 58) + `"]},"target":{"persistentVolumeClaims":[{"claimName":"a","path":"a/b.kdump"},{"claimName":"b"}]}`,
		"flattened-file": claim + `,"format":"Flattened"`,
	} {
		t.Run(name, func(t *testing.T) {
			err := client.WithFieldValidation(admin, metav1.FieldValidationStrict).Create(t.Context(), object(t, "good-"+name, `{"nodeName":"no-such-node",`+spec+`}`))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { w.finish("good-" + name) })
		})
	}
}

func TestSpecIsImmutable(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", func(d *v1alpha1.LiveDump) {
		d.Spec.Reserve = &v1alpha1.Reserve{LimitBytes: 1 << 20}
		d.Spec.TTLSecondsAfterFinished = new(int32(600))
		d.Spec.Limits = &v1alpha1.Limits{CPUs: 1}
	})
	const again = " is immutable: create another LiveDump"
	tests := map[string]struct{ patch, message string }{
		"node":              {`{"nodeName":"other"}`, "spec.nodeName: Invalid value: \"other\": nodeName" + again},
		"claim":             {`{"target":{"persistentVolumeClaim":{"claimName":"other"}}}`, "target" + again},
		"several claims":    {`{"target":{"persistentVolumeClaim":null,"persistentVolumeClaims":[` + claimItems(2) + `]}}`, "target" + again},
		"target taken away": {`{"target":{"persistentVolumeClaim":null}}`, "target"},
		"profile":           {`{"content":{"profile":"Full"}}`, "content" + again},
		"consistency":       {`{"consistency":"BestEffort"}`, "consistency" + again},
		"compression":       {`{"compression":"None"}`, "compression" + again},
		"reserve":           {`{"reserve":{"limitBytes":5}}`, "spec.reserve: Invalid value: reserve" + again},
		"reserve removed":   {`{"reserve":null}`, "reserve" + again},
		"format":            {`{"format":"ELF"}`, "format" + again},
		"limits":            {`{"limits":{"cpus":2}}`, "limits" + again},
		"limits removed":    {`{"limits":null}`, "limits" + again},
		"path":              {`{"target":{"persistentVolumeClaim":{"path":"other"}}}`, "target" + again},
		"timeout":           {`{"timeoutSeconds":99}`, "timeoutSeconds" + again},
		"ttl":               {`{"ttlSecondsAfterFinished":5}`, "ttlSecondsAfterFinished" + again},
		"ttl removed":       {`{"ttlSecondsAfterFinished":null}`, "ttlSecondsAfterFinished" + again},
		"encryption added":  {`{"encryption":{"recipients":["age1` + strings.Repeat("q", 58) + `"]}}`, "encryption" + again},
		"policy":            {`{"overwritePolicy":"Never"}`, "overwritePolicy" + again},
	}
	patch := func(spec string) error {
		return admin.Patch(t.Context(), dump.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"spec":`+spec+`}`)))
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := patch(test.patch)
			if err == nil {
				t.Fatal("accepted")
			}
			if !apierrors.IsInvalid(err) || !strings.Contains(strings.ReplaceAll(err.Error(), `"object": `, ""), test.message) {
				t.Errorf("error: %v\nwant: %s", err, test.message)
			}
		})
	}
	if err := patch(`{"desiredState":"Cancel"}`); err != nil {
		t.Errorf("canceling: %v", err)
	}
	if err := patch(`{"desiredState":"Run"}`); err == nil || !strings.Contains(err.Error(), "a canceled LiveDump cannot run again") {
		t.Errorf("running again: %v", err)
	}
}

// The agent watches the LiveDumps of its node by this field.
func TestNodeNameIsSelectable(t *testing.T) {
	w := newWorld(t)
	mine := w.create("mine", nil)
	w.create("other", func(d *v1alpha1.LiveDump) { d.Spec.NodeName = "another-node" })
	list := &v1alpha1.LiveDumpList{}
	w.must(admin.List(t.Context(), list, client.MatchingFields{"spec.nodeName": w.node}))
	if len(list.Items) != 1 || list.Items[0].Name != mine.Name {
		t.Errorf("LiveDumps of %s: %+v", w.node, list.Items)
	}
}

// What kubectl prints, by the short name's columns.
func TestPrintedColumns(t *testing.T) {
	w := newWorld(t)
	dump := w.create("dump", nil)
	a := w.begin(dump)
	w.must(a.report(dump, complete()))
	w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, "")
	table := w.table()
	row, ok := table[dump.Name]
	if !ok {
		t.Fatalf("no row for %s in %v", dump.Name, table)
	}
	for column, want := range map[string]string{"Node": w.node, "Status": "Complete", "Size": "123456", "Freeze(us)": "900"} {
		if row[column] != want {
			t.Errorf("column %s is %q, want %q", column, row[column], want)
		}
	}
	if row["Age"] == "" || !strings.Contains(row["Message"], "read back and verified") {
		t.Errorf("row: %v", row)
	}
}
