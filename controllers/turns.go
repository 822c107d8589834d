// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

// errNotItsTurn: another LiveDump took the turn between the decision and the deed.
var errNotItsTurn = errors.New("it is another LiveDump's turn")

// turns are the LiveDumps that have begun and that the cache may still show as waiting. Two LiveDumps of a node must
// never run together, and who runs is read from the cache, which shows the controller's own writes late. So
// what begins is noted here first, and what the controller before this one let begin is read once
// from the API server.
type turns struct {
	mu     sync.Mutex
	seeded bool
	begun  map[types.UID]turn
	// looked is when all about a LiveDump was last looked at.
	looked map[types.UID]look
}

type turn struct {
	dump  *v1alpha1.LiveDump
	since time.Time
}

type look struct {
	name types.NamespacedName
	at   time.Time
}

// takeTurn notes that the LiveDump begins, unless another one has begun since the decision. Its claims are those that were
// seen: what has files can be shared.
func (r *LiveDumpReconciler) takeTurn(ctx context.Context, dump *v1alpha1.LiveDump, claims []*claimSeen) error {
	t := &r.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.seed(ctx, r.Reader, r.Clock.Now()); err != nil {
		return err
	}
	others, err := r.listOthers(ctx, dump)
	if err != nil {
		return err
	}
	o := &observation{dump: dump, claims: claims, maxConcurrent: r.MaxConcurrent, others: t.overlay(ctx, r.cache(), others, dump, r.Clock.Now())}
	if checkLine(o).state != fine || checkRival(o).state == failed {
		return errNotItsTurn
	}
	begun := dump.DeepCopy()
	now := r.Clock.Now()
	begun.Status.StartTime = &metav1.Time{Time: now}
	t.begun[dump.UID] = turn{begun, now}
	return nil
}

// giveBack is for a LiveDump whose beginning was not written.
func (t *turns) giveBack(dump *v1alpha1.LiveDump) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.begun, dump.UID)
}

// forget is for a LiveDump that does not exist any more.
func (t *turns) forget(name types.NamespacedName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for uid, begun := range t.begun {
		if client.ObjectKeyFromObject(begun.dump) == name {
			delete(t.begun, uid)
		}
	}
	for uid, looked := range t.looked {
		if looked.name == name {
			delete(t.looked, uid)
		}
	}
}

// seed reads, once, which LiveDumps have begun.
func (t *turns) seed(ctx context.Context, reader client.Reader, now time.Time) error {
	if t.seeded {
		return nil
	}
	t.begun = map[types.UID]turn{}
	for dump, err := range allLiveDumps(ctx, reader) {
		if err != nil {
			return fmt.Errorf("looking for LiveDumps that have begun: %w", err)
		}
		if dump.Status.StartTime != nil && !dump.Ended() {
			t.begun[dump.UID] = turn{dump.DeepCopy(), now} // a chunk is not to stay for one of its LiveDumps
		}
	}
	t.seeded = true
	return nil
}

// cacheLag is after how long a LiveDump that the cache does not have at all is taken for deleted.
const cacheLag = time.Minute

// settle drops what is noted of a LiveDump that the cache shows as begun or ended.
func (t *turns) settle(dump *v1alpha1.LiveDump) {
	if dump.Status.StartTime == nil && !dump.Ended() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.begun, dump.UID)
}

// overlay puts what is noted here over what the cache shows, others being the LiveDumps that have not ended.
func (t *turns) overlay(ctx context.Context, cache client.Reader, others []*v1alpha1.LiveDump, self *v1alpha1.LiveDump, now time.Time) []*v1alpha1.LiveDump {
	shown := make(map[types.UID]bool, len(others))
	for i, other := range others {
		shown[other.UID] = true
		noted, ok := t.begun[other.UID]
		switch {
		case !ok:
		case other.Status.StartTime != nil || other.Ended():
			delete(t.begun, other.UID) // the cache has caught up
		default:
			others[i] = noted.dump
		}
	}
	for uid, noted := range t.begun {
		if uid == self.UID || shown[uid] {
			continue
		}
		// It may have ended in the cache, or not be there yet.
		is := &v1alpha1.LiveDump{}
		err := cache.Get(ctx, client.ObjectKeyFromObject(noted.dump), is)
		if err == nil && (is.UID != uid || is.Ended()) || now.Sub(noted.since) > cacheLag && apierrors.IsNotFound(err) {
			delete(t.begun, uid)
			continue
		}
		others = append(others, noted.dump)
	}
	return others
}

// lookIsDue says whether it is time for a look that asks the API server, although the glance found nothing to do.
func (t *turns) lookIsDue(o *observation, d decision) bool {
	if o.dump.Ended() || o.dump.Begun() {
		return false
	}
	t.mu.Lock()
	last, ok := t.looked[o.dump.UID]
	t.mu.Unlock()
	switch {
	case !ok && d.waitsInLine():
		return o.now.Sub(o.dump.CreationTimestamp.Time) >= lineFirstLook
	case !ok:
		return true
	case d.waitsInLine():
		return o.now.Sub(last.at) >= lineSafetyLook
	}
	return o.now.Sub(last.at) >= safetyLook
}

// haveLooked notes a look at everything.
func (t *turns) haveLooked(o *observation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o.dump.Begun() || o.dump.Ended() {
		delete(t.looked, o.dump.UID)
		return
	}
	if t.looked == nil {
		t.looked = map[types.UID]look{}
	}
	t.looked[o.dump.UID] = look{client.ObjectKeyFromObject(o.dump), o.now}
}
