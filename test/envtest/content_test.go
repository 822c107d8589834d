// SPDX-License-Identifier: Apache-2.0

//go:build envtest

package envtest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
	"livedump.io/internal/session/sessiontest"
)

// secretOf is what a page holds that must be nowhere but in the dump.
const secretOf = "tenants-private-key-0123456789abcdef"

// Memory full of secrets is dumped, once whole and once with a failure in the middle. Afterwards neither the LiveDumps
// nor any event nor the agent's log, with everything in it, has a piece of them.
func TestMemoryStaysInTheDump(t *testing.T) {
	for name, spoil := range map[string]func(*sessiontest.Memory){
		"complete": nil,
		"failed": func(m *sessiontest.Memory) {
			m.NextError = session.ErrReserveExhausted
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dump := w.create("dump", nil)
			m := nodeMemory()
			for pfn := range m.Pages {
				m.Pages[pfn] = bytes.Repeat([]byte(secretOf), 4096/len(secretOf))
			}
			if spoil != nil {
				spoil(m)
			}
			var log bytes.Buffer
			a := w.startAgent()
			a.log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			p := a.runProcess(m, filepath.Join(t.TempDir(), "target"), nil)
			w.runHolder(dump)
			if spoil == nil {
				w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionTrue, "")
				// The check can fail: it is the dump that has the secret.
				on, err := kdump.Open(p.target)
				w.must(err)
				defer on.Close()
				page := make([]byte, 4096)
				if _, err := on.ReadPage(257, page); err != nil || !bytes.Contains(page, []byte(secretOf)) {
					t.Errorf("the dump lacks the page (%v)", err)
				}
			} else {
				w.await(dump, v1alpha1.ConditionSucceeded, metav1.ConditionFalse, v1alpha1.ReasonReserveExhausted)
			}
			w.awaitReleased(dump)
			p.stop()

			said := map[string]string{"the agent's log": log.String()}
			text, err := json.Marshal(w.get(dump))
			w.must(err)
			said["the LiveDump"] = string(text)
			events := &eventsv1.EventList{}
			w.must(admin.List(w.ctx, events))
			text, err = json.Marshal(events)
			w.must(err)
			said["an event"] = string(text)
			if log.Len() == 0 || !strings.Contains(said["an event"], string(dump.UID)) {
				t.Error("there is nothing to look at")
			}
			for where, text := range said {
				// Any eight bytes of it, as they are and as they might be printed.
				for i := range len(secretOf) - 8 {
					piece := []byte(secretOf[i : i+8])
					for _, form := range []string{string(piece), hex.EncodeToString(piece), base64.StdEncoding.EncodeToString(piece)[:10], strings.Trim(fmt.Sprint(piece), "[]")} {
						if strings.Contains(text, form) {
							t.Fatalf("%s has %q of memory", where, form)
						}
					}
				}
			}
		})
	}
}
