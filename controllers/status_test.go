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
	want := v1alpha1.TargetStatus{Claims: make([]v1alpha1.ClaimStatus, 1)}
	for _, v := range []reflect.Value{reflect.ValueOf(&want).Elem(), reflect.ValueOf(&want.Claims[0]).Elem()} {
		for i := range v.NumField() {
			switch f := v.Field(i); {
			case f.Kind() == reflect.String:
				f.SetString(v.Type().Field(i).Name)
			case f.Kind() == reflect.Int64:
				f.SetInt(7)
			case f.Type() != reflect.TypeOf(want.Claims):
				t.Fatalf("field %s is of a kind that this test does not know", v.Type().Field(i).Name)
			}
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
		if !reflect.DeepEqual(got.Target, target) {
			t.Errorf("%s: %+v is written, want %+v", name, got.Target, target)
		}
	}
}
