// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// NodeWatch follows a node's Ready condition through every change, so that a
// short lapse between two looks is seen too.
type NodeWatch struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	seen    int
	lapses  []string
	unknown error // why the watch cannot speak for the whole time
}

// WatchNode begins to follow the cluster's node.
func (c *Cluster) WatchNode(ctx context.Context) (*NodeWatch, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &NodeWatch{name: c.NodeName(), cancel: cancel, done: make(chan struct{})}
	events, err := c.watchNode(ctx, "")
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer close(w.done)
		last := ""
		for {
			for event := range events.ResultChan() {
				// The end of the watch shows as an error in it.
				if ctx.Err() == nil {
					last = w.take(event, last)
				}
			}
			if ctx.Err() != nil {
				return
			}
			// API servers end watches now and then. Going on from the last version
			// seen leaves no gap.
			if events, err = c.watchNode(ctx, last); err != nil {
				w.mu.Lock()
				w.unknown = err
				w.mu.Unlock()
				return
			}
		}
	}()
	return w, nil
}

func (c *Cluster) watchNode(ctx context.Context, from string) (watch.Interface, error) {
	options := &client.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", c.NodeName())}
	options.Raw = options.AsListOptions()
	options.Raw.ResourceVersion = from
	events, err := c.Client.Watch(ctx, &corev1.NodeList{}, options)
	if err != nil {
		return nil, fmt.Errorf("watch node %s: %w", c.NodeName(), err)
	}
	return events, nil
}

func (w *NodeWatch) take(event watch.Event, last string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	node, ok := event.Object.(*corev1.Node)
	switch {
	case event.Type == watch.Error:
		w.unknown = fmt.Errorf("the watch broke: %v", event.Object)
		return last
	case !ok:
		return last
	case event.Type == watch.Deleted:
		w.lapses = append(w.lapses, "the node was deleted")
	default:
		w.seen++
		if ready, why := nodeReady(node); !ready {
			w.lapses = append(w.lapses, why)
		}
	}
	return node.ResourceVersion
}

// Stop ends the watch. It returns an error if the node was not Ready at any
// time since the watch began, or if that cannot be told.
func (w *NodeWatch) Stop() error {
	w.cancel()
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(w.lapses) > 0:
		return fmt.Errorf("node %s did not stay Ready: %s", w.name, w.lapses[0])
	case w.unknown != nil:
		return fmt.Errorf("node %s: %w", w.name, w.unknown)
	case w.seen == 0:
		return errors.New("the watch of node " + w.name + " saw nothing")
	}
	return nil
}
