// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// By the session's UUID one finds a dump in the logs of controller, agent and kernel.
func TestEveryLineHasTheSession(t *testing.T) {
	o := fresh()
	o.claims[0].claim.Namespace = "dumps"
	var lines []string
	ctx := log.IntoContext(t.Context(), funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{}))
	r := reconcilerOn(t, interceptor.Funcs{}, o.dump, o.node, o.claims[0].claim, o.claims[0].volume)
	if _, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(o.dump)}); err != nil {
		t.Fatal(err)
	}
	if len(lines) == 0 {
		t.Fatal("the acceptance of a LiveDump is not logged")
	}
	for _, line := range lines {
		if !strings.Contains(line, `"session"="`+string(o.dump.UID)+`"`) {
			t.Errorf("no session in %s", line)
		}
	}
}
