// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestOptions(t *testing.T) {
	t.Setenv(namespaceVariable, "livedump-system")
	o, err := parseOptions([]string{"--holder-image=image:1"}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	c := o.parsedConfig
	if !slices.Equal(c.Namespaces, []string{"livedump-system"}) || c.AgentNamespace != "livedump-system" || o.leaderNamespace != "livedump-system" || c.HolderImagePullPolicy != "IfNotPresent" {
		t.Errorf("defaults: %+v", o)
	}
	o, err = parseOptions([]string{"--holder-image=image:1", "--namespaces=b, a,b"}, &bytes.Buffer{})
	if err != nil || !slices.Equal(o.parsedConfig.Namespaces, []string{"a", "b"}) {
		t.Errorf("namespaces: %v %v", o, err)
	}
}

func TestBadOptions(t *testing.T) {
	for name, test := range map[string]struct {
		namespace string
		args      []string
		message   string
	}{
		"no holder image":   {"ns", nil, "--holder-image is required"},
		"no namespace":      {"", []string{"--holder-image=i"}, "$POD_NAMESPACE is not set"},
		"bad namespace":     {"ns", []string{"--holder-image=i", "--namespaces=a,B"}, `"B" is no namespace`},
		"empty namespace":   {"ns", []string{"--holder-image=i", "--namespaces=a,"}, `"" is no namespace`},
		"bad selector":      {"ns", []string{"--holder-image=i", "--agent-selector=a in"}, "--agent-selector"},
		"bad pull policy":   {"ns", []string{"--holder-image=i", "--holder-image-pull-policy=Sometimes"}, `"Sometimes" is none of`},
		"negative limit":    {"ns", []string{"--holder-image=i", "--max-concurrent-dumps=-1"}, "must not be negative"},
		"argument too many": {"ns", []string{"--holder-image=i", "extra"}, `unexpected argument "extra"`},
		"unknown flag":      {"ns", []string{"--no-such-flag"}, "no-such-flag"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(namespaceVariable, test.namespace)
			_, err := parseOptions(test.args, &bytes.Buffer{})
			var wrong usageError
			if !errors.As(err, &wrong) || !strings.Contains(err.Error(), test.message) {
				t.Errorf("error: %v, want a usage error with %q", err, test.message)
			}
		})
	}
}

func TestVersionNeedsNothingElse(t *testing.T) {
	t.Setenv(namespaceVariable, "")
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--version"}, &out); err != nil || out.String() != "livedump-controller dev\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}
