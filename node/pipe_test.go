package node_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// TestPipe counts up keys of all shards through one node's pipe, while leaders move away and one node dies: each addition is applied
// once, whether it went to a lane of this node or through the client.
func TestPipe(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 9, 3)
	const keys, rounds, depth = 30, 20, 16
	ctx := deadline(t, time.Minute)
	p := c.Node(0).Pipe(depth)
	applied, unknown := make([]int64, keys), make([]int64, keys)
	collect := func() {
		done, err := p.Wait(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range done {
			switch {
			case d.Err == nil && d.Version > 0:
				applied[d.Tag]++
			case errors.Is(d.Err, shard.ErrAmbiguous):
				unknown[d.Tag]++
			default:
				t.Fatalf("add to key %d: version %d, %v", d.Tag, d.Version, d.Err)
			}
		}
	}
	for i := range keys * rounds {
		switch i {
		case keys * rounds / 4:
			moveLeaders(t, c)
		case keys * rounds / 2:
			c.Kill(2)
		}
		for !p.Write(uint64(i%keys), &shard.Write{Ops: []shard.Op{{Kind: shard.OpAdd, Key: key(i % keys), Delta: 1}}}) {
			collect()
		}
	}
	for p.Free() < depth {
		collect()
	}
	for i := range keys {
		if applied[i]+unknown[i] != rounds {
			t.Errorf("key %d: %d additions ended, want %d", i, applied[i]+unknown[i], rounds)
		}
		p.Get(uint64(i), key(i))
		done, err := p.Wait(ctx, nil)
		if err != nil || len(done) != 1 || done[0].Err != nil || done[0].Tag != uint64(i) {
			t.Fatalf("get: %+v, %v", done, err)
		}
		var sum int64
		if _, err := fmt.Sscan(string(done[0].Value), &sum); err != nil || sum < applied[i] || sum > applied[i]+unknown[i] {
			t.Errorf("key %d is %q (%v), want %d to %d", i, done[0].Value, err, applied[i], applied[i]+unknown[i])
		}
	}
}

// moveLeaders hands shards that node 0 leads to node 1, as far as that is possible just now.
func moveLeaders(t *testing.T, c *nodetest.Cluster) {
	t.Helper()
	led, _ := c.Node(0).Leading()
	for _, d := range led {
		body := (&api.TransferRequest{Shard: d.Shard, To: 2}).Append(nil)
		if _, err := c.Node(1).Client().Call(deadline(t, 5*time.Second), 0, "", api.MethodTransfer, body); err != nil {
			t.Logf("transfer of shard %d: %v", d.Shard, err)
		}
	}
}

// TestPipeEnds: what has no effect here ends with its reason, and what is absent is not found.
func TestPipeEnds(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 1, 1)
	ctx := deadline(t, time.Minute)
	p := c.Node(0).Pipe(4)
	one := func(queue bool) error {
		t.Helper()
		done, err := p.Wait(ctx, nil)
		if !queue || err != nil || len(done) != 1 {
			t.Fatalf("%t, %+v, %v", queue, done, err)
		}
		return done[0].Err
	}
	for range 2 { // first through the client, for the map is empty; then straight
		if err := one(p.Get(1, []byte("k"))); !errors.Is(err, shard.ErrNotFound) {
			t.Errorf("absent key: %v", err)
		}
	}
	if err := one(p.Put(1, []byte("k"), []byte("v"))); err != nil {
		t.Errorf("put: %v", err)
	}
	if err := one(p.Write(1, &shard.Write{Conditions: []shard.Condition{{Kind: shard.ConditionAbsent, Key: []byte("k")}},
		Ops: []shard.Op{{Kind: shard.OpDelete, Key: []byte("k")}}})); !errors.Is(err, shard.ErrConditionFailed) {
		t.Errorf("failed condition: %v", err)
	}
	if err := one(p.Delete(1, []byte("k"))); err != nil {
		t.Errorf("delete: %v", err)
	}
	if err := one(p.Put(1, nil, []byte("v"))); err == nil {
		t.Error("an empty key was taken")
	}
	if done, err := p.Wait(ctx, nil); err != nil || len(done) != 0 {
		t.Errorf("nothing is in flight: %v, %v", done, err)
	}
	c.Kill(0)
	if err := one(p.Put(1, []byte("k"), []byte("v"))); err == nil {
		t.Error("a closed node has taken a put")
	}
}
