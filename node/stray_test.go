package node_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/transport/wire"
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

// A replica that a leader's message has made, and nobody fills, as that leader died with the change that added it, goes when its shard was
// absorbed, or its leader does not name it. It announces nothing, so it was once kept for ever; and so was one whose absorber had left such a replica
// here, too.
func TestUnfilledReplicaOfAbsorbedShard(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) { node.SetSyncEvery(cfg, 100*time.Millisecond) }})
	c.Init(0, 2, 3)
	four := c.Add()
	const left, right = 2, 3
	holds := func(id engine.ShardID) bool {
		st, err := c.Node(four).Sched().Status(deadline(t, 5*time.Second), id)
		if err != nil && !errors.Is(err, shard.ErrShardNotFound) {
			t.Fatal(err)
		}
		if err == nil && st.Descriptor != nil {
			t.Fatalf("shard %d: the replica was filled", id)
		}
		return err == nil
	}
	for _, id := range []engine.ShardID{left, right} {
		vote := engine.VoteRequest{Pre: true, Vote: engine.Vote{Term: 1, Peer: engine.Peer{Node: c.Node(0).ID(), Replica: 7000}}}
		head := wire.Header{Shard: id, From: 7000, To: 7001}
		nodetest.Eventually(t, 20*time.Second, func() error {
			c.Node(four).Sched().RaftFrame(c.Node(0).ID(), c.Node(0).Incarnation(), wire.AppendVoteRequest(nil, head, &vote))
			if !holds(id) {
				return fmt.Errorf("shard %d: no replica was made", id)
			}
			return nil
		})
	}
	if err := c.Node(0).BuryInMeta(deadline(t, 10*time.Second), right, left); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, 20*time.Second, func() error {
		if holds(right) {
			return fmt.Errorf("the replica of shard %d, which was absorbed, is still there", right)
		}
		return nil
	})
	nodetest.Eventually(t, 40*time.Second, func() error {
		if holds(left) {
			return fmt.Errorf("the replica of shard %d, which its leader does not name, is still there", left)
		}
		return nil
	})
	// A replica that nobody names does not keep its node from being drained.
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpDrain, From: c.Node(four).ID()}), 40*time.Second, placement.OpDone)
}

// plant writes the record of a replica whose descriptor does not name it, as a snapshot leaves it.
func plant(t *testing.T, dir string, d *shard.Descriptor, self shard.ReplicaDesc) {
	t.Helper()
	db, err := state.Open(node.StatePath(dir), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tablet, err := db.AllocTablet()
	if err != nil {
		t.Fatal(err)
	}
	named := d.Clone()
	named.Replicas[0] = self
	rec, err := shard.NewReplicaRecord(named, self.Replica, tablet)
	if err != nil {
		t.Fatal(err)
	}
	rec.Membership.Membership = shard.MembershipOf(d)
	rec.Meta = bytes.Replace(rec.Meta, shard.AppendDescriptor(nil, named), shard.AppendDescriptor(nil, d), 1)
	if err := errors.Join(db.Write([]state.Change{{Record: rec, NewTablet: true}}, 0), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// A replica that a snapshot has filled, from before the entry that added it, on a node that was down when that was undone, has never been a member: what meta
// says of the shard proves nothing. Its leader does not name it, so it goes; else it stayed for ever, and its node was never drained.
func TestFilledReplicaThatNeverWasMember(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) { node.SetSyncEvery(cfg, 100*time.Millisecond) }})
	c.Init(0, 2, 3)
	four := c.Add()
	const id = 2
	_, lead := leadOf(t, c, id)
	c.Kill(four)
	plant(t, c.Dir(four), lead.Descriptor, shard.ReplicaDesc{Node: 4, Replica: 7001, Role: shard.RoleVoter})
	c.Restart(four)
	if st, err := c.Node(four).Sched().Status(deadline(t, 5*time.Second), id); err != nil || st.Descriptor == nil || st.WasMember {
		t.Fatalf("%+v, %v", st, err)
	}
	nodetest.Eventually(t, 40*time.Second, func() error {
		if st, err := c.Node(four).Sched().Status(deadline(t, 5*time.Second), id); !errors.Is(err, shard.ErrShardNotFound) {
			return fmt.Errorf("replica %d is still there, %v", st.Replica, err)
		}
		return nil
	})
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpDrain, From: c.Node(four).ID()}), 40*time.Second, placement.OpDone)
}
