package node_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/shard"
)

// A replica of a shard that was absorbed is removed, however many absorbers were absorbed after that. It was once kept for ever, silently,
// behind more than 64 of them.
func TestLongChainOfAbsorbers(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 2, 1)
	const dead = 3
	ctx := deadline(t, 30*time.Second)
	if _, err := c.Node(0).Sched().Status(ctx, dead); err != nil {
		t.Fatal(err)
	}
	chain := []engine.ShardID{dead}
	for i := range 100 {
		chain = append(chain, engine.ShardID(1000+i))
	}
	if err := c.Node(0).Bury(ctx, chain); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, 20*time.Second, func() error {
		if _, err := c.Node(0).Sched().Status(ctx, dead); !errors.Is(err, shard.ErrShardNotFound) {
			return errors.New("the replica is still there")
		}
		return nil
	})
}
