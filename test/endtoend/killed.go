// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"strings"

	livedumpv1alpha1 "livedump.io/api/v1alpha1"
	"livedump.io/node-agent/engine"
)

// dieAt is the file on the node that tells the agent where to kill itself. Of the node's folders that the agent has, this is the one that it
// may write to.
const dieAt = "/dev/livedump-die-at"

// killedAtEachStep: the agent is killed once, at a point that is named beforehand. Before memory is frozen there is nothing to take over, and
// the next agent begins anew.
func killedAtEachStep() (all []fault) {
	for _, point := range []engine.Step{engine.StepTarget, engine.StepModule, engine.StepPrepare, engine.StepFreeze} {
		all = append(all, killedAt(point, false))
	}
	for _, point := range []engine.Step{
		engine.PointFrozen, engine.StepWrite, engine.PointAcknowledged, engine.StepThaw, engine.PointThawed, engine.StepFinish, engine.StepVerify,
	} {
		all = append(all, killedAt(point, true))
	}
	return all
}

func killedAt(point engine.Step, takenOver bool) fault {
	return fault{
		name: "cluster: agent killed at " + string(point), expected: livedumpv1alpha1.ReasonComplete, takenOver: takenOver,
		prepare: func(b *Bench, ctx context.Context) error {
			if err := b.release(ctx, "upgrade", imageTag, "--set=agent.extraArgs={--die-at="+dieAt+"}"); err != nil {
				return err
			}
			return b.Guest.Put(ctx, dieAt, 0o644, strings.NewReader(string(point)))
		},
		early: true, happen: (*Bench).awaitDeath, putBack: (*Bench).letAgentsLive,
	}
}

// awaitDeath returns when the agent has come to the point of its death, where it removes the file.
func (b *Bench) awaitDeath(ctx context.Context, dump *livedumpv1alpha1.LiveDump) error {
	return b.Follow(ctx, dump.Name, "the agent's death", func(d *livedumpv1alpha1.LiveDump) (bool, error) {
		out, err := b.Guest.Run(ctx, "sh", "-c", "[ ! -e "+dieAt+" ] || echo alive")
		if err != nil {
			return false, err
		}
		dead := out.Stdout == ""
		if !dead && d.Status.CompletionTime != nil {
			return false, fmt.Errorf("the dump was over before the agent was killed: %s", summary(d))
		}
		return dead, nil
	})
}

func (b *Bench) letAgentsLive(ctx context.Context) error {
	_, err := b.Guest.Run(ctx, "rm", "-f", dieAt)
	return errors.Join(err, b.downgrade(ctx))
}
