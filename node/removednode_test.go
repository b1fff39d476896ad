package node_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// What a cancelled drain changes in the record of its node gives way to a removal that came in between: the node stays removed.
func TestUndrainKeepsRemoval(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 2, 3)
	four := c.Add()
	id := c.Node(four).ID()
	ctx := deadline(t, 60*time.Second)
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpDrain, From: id}), 40*time.Second, placement.OpDone)
	var write func(context.Context) error
	nodetest.Eventually(t, 20*time.Second, func() (err error) { write, err = c.Node(0).NodeUpLater(ctx, id); return err })
	c.Kill(four) // it would end itself
	nodetest.Eventually(t, 20*time.Second, func() error {
		return c.Node(0).SetNode(ctx, api.NodeSetRequest{Node: id, Action: api.NodeRemove})
	})
	nodetest.Eventually(t, 20*time.Second, func() error {
		err := write(ctx)
		switch {
		case err == nil:
			t.Fatal("the removed node is up again")
		case errors.Is(err, shard.ErrConditionFailed):
			return nil
		}
		return err
	})
}

// A replica of an absorbed shard is removed although its absorber is here, if that has passed the Merge without it.
func TestAbsorbedBeforeItCame(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 2, 1)
	ctx := deadline(t, 30*time.Second)
	by, err := c.Node(0).Sched().Status(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Node(0).BuryInMetaAt(ctx, 3, 2, by.Descriptor.Version); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(0).Doubt(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if st, err := c.Node(0).Sched().Status(ctx, 3); !errors.Is(err, shard.ErrShardNotFound) {
		t.Fatalf("it is still there: %+v %v", st, err)
	}
}

// A node that has started a moment ago knows few shards. It neither ends the drain of a node for that, nor lets it be removed: what it has not heard of may be there.
func TestUnknownShardsKeepTheirNode(t *testing.T) {
	var hold atomic.Bool
	hold.Store(true)
	c := nodetest.Start(t, 1, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		node.SetFault(cfg, func(step string) error {
			if hold.Load() && strings.HasPrefix(step, "op ") {
				return errors.New("the driver does nothing")
			}
			return nil
		})
	}})
	c.Init(0, 2, 1)
	two := c.Add()
	id := c.Node(two).ID()
	hold.Store(false)
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpMove, Shard: 2, From: c.Node(0).ID(), To: id}), 20*time.Second, placement.OpDone)
	hold.Store(true)
	startOp(t, c, 0, placement.Op{Kind: placement.OpDrain, From: id})
	c.Kill(two)
	nodetest.Eventually(t, 20*time.Second, func() error {
		st, err := c.Node(0).StatusOf(deadline(t, 3*time.Second))
		if err == nil && !slices.ContainsFunc(st.Problems, func(p string) bool { return strings.Contains(p, "is down") }) {
			err = fmt.Errorf("the node lives: %v", st.Problems)
		}
		return err
	})
	c.Node(0).ForgetShards()
	if state, err := c.Node(0).StepDrain(deadline(t, 10*time.Second), id); err != nil || state != placement.OpRunning {
		t.Errorf("the drain is %s, %v", state, err)
	}
	c.Node(0).ForgetShards()
	err := c.Node(0).SetNode(deadline(t, 10*time.Second), api.NodeSetRequest{Node: id, Action: api.NodeRemove})
	if !errors.Is(err, shard.ErrInvalid) || !strings.Contains(err.Error(), "holds 1 replica") {
		t.Errorf("the removal of a node with the only replica of a shard: %v", err)
	}
}
