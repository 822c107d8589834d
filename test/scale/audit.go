// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// auditPolicy has one line for each request of livedump's own accounts. Of a watch that is its beginning.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
  - level: Metadata
    userGroups: ["system:serviceaccounts:` + releaseNamespace + `"]
  - level: None
`

// request is what is counted together.
type request struct {
	user string
	what string // verb and resource
}

// audit counts requests from the lines that the API server prints.
type audit struct {
	mu   sync.Mutex
	rest []byte
	seen map[request]int
}

// Write implements io.Writer.
func (a *audit) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rest = append(a.rest, p...)
	for {
		line, rest, whole := bytes.Cut(a.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		a.count(line)
		a.rest = rest
	}
}

func (a *audit) count(line []byte) {
	var event auditv1.Event
	// Whatever else is printed there is no JSON of this kind.
	if json.Unmarshal(line, &event) != nil || event.Kind != "Event" || event.Stage == auditv1.StageResponseStarted && event.Verb != "watch" || event.Stage == auditv1.StageResponseComplete && event.Verb == "watch" {
		return
	}
	what := event.Verb + " " + event.RequestURI
	if ref := event.ObjectRef; ref != nil {
		what = event.Verb + " " + ref.Resource
		if ref.Subresource != "" {
			what += "/" + ref.Subresource
		}
	}
	user := event.User.Username[strings.LastIndex(event.User.Username, ":")+1:]
	if a.seen == nil {
		a.seen = map[request]int{}
	}
	a.seen[request{user, what}]++
}

func (a *audit) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = nil
}

func (a *audit) counts() map[request]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	counts := map[request]int{}
	for key, n := range a.seen {
		counts[key] = n
	}
	return counts
}
