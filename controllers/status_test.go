// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"encoding/json"
	"reflect"
	"testing"

	"livedump.io/api/v1alpha1"
)

// TestWholeTargetIsWritten: what the agent is told of the target goes by way of an apply configuration, which writes no field
// that was forgotten.
func TestWholeTargetIsWritten(t *testing.T) {
	want := v1alpha1.TargetStatus{}
	for v, i := reflect.ValueOf(&want).Elem(), 0; i < v.NumField(); i++ {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(v.Type().Field(i).Name)
		case reflect.Int64:
			f.SetInt(7)
		default:
			t.Fatalf("field %s is of a kind that this test does not know", v.Type().Field(i).Name)
		}
	}
	for name, target := range map[string]v1alpha1.TargetStatus{"of a claim": want, "of an object": {HolderPodUID: "uid"}} {
		written, err := json.Marshal(controllerPart(&v1alpha1.LiveDumpStatus{}, &v1alpha1.LiveDumpStatus{Target: target}))
		if err != nil {
			t.Fatal(err)
		}
		var got v1alpha1.LiveDumpStatus
		if err := json.Unmarshal(written, &got); err != nil {
			t.Fatal(err)
		}
		if got.Target != target {
			t.Errorf("%s: %+v is written, want %+v", name, got.Target, target)
		}
	}
}
