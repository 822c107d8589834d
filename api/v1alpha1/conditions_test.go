// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The list of the reasons of failure is what metrics, runbooks and tests go by.
func TestFailureReasonsAreAll(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "conditions.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Those of conditions on the way, and of dumps that go on or succeed.
	others := []string{ReasonAccepted, ReasonWaitingInLine, ReasonAttached, ReasonAttachedDirectly, ReasonNothingToAttach, ReasonAgentReady, ReasonNotReached,
		ReasonPending, ReasonRunning, ReasonComplete}
	var declared []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Reason") {
			return true
		}
		value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		declared = append(declared, value)
		return true
	})
	if len(declared) < 20 {
		t.Fatalf("only %d reasons found", len(declared))
	}
	for _, reason := range declared {
		if slices.Contains(others, reason) == slices.Contains(FailureReasons, reason) {
			t.Errorf("reason %s belongs to FailureReasons or to those that are none, not to both or neither", reason)
		}
	}
}
