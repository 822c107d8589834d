// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"iter"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

// listLimit is how many LiveDumps are read from the API server at a time.
const listLimit = 200

// allLiveDumps are all LiveDumps that reader, which is no cache, has; the error, if there is one, comes last. Every chunk has a list
// of its own, so that no LiveDump can get from the one that was in its place what it lacks itself, such as startTime: JSON is
// decoded into items that are there already, unless the client empties the list first, as this one does.
func allLiveDumps(ctx context.Context, reader client.Reader) iter.Seq2[*v1alpha1.LiveDump, error] {
	return func(yield func(*v1alpha1.LiveDump, error) bool) {
		for next := ""; ; {
			chunk := &v1alpha1.LiveDumpList{}
			if err := reader.List(ctx, chunk, client.Limit(listLimit), client.Continue(next)); err != nil {
				yield(nil, fmt.Errorf("listing LiveDumps: %w", err))
				return
			}
			for i := range chunk.Items {
				if !yield(&chunk.Items[i], nil) {
					return
				}
			}
			if next = chunk.Continue; next == "" {
				return
			}
		}
	}
}
