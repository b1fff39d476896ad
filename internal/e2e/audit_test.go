package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/demo"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/shard"
)

// audit looks at a cluster from outside, again and again: what it has seen once must not go back.
type audit struct {
	c        *cluster
	replicas int
	pool     *router.Pool
	meta     *router.Client
	views    []client.Cluster // one of each node
	epochs   map[uint64][2]uint64
	dead     map[uint64]bool
}

func newAudit(c *cluster, replicas int) *audit {
	a := &audit{c: c, replicas: replicas, epochs: map[uint64][2]uint64{}, dead: map[uint64]bool{}}
	a.pool = router.NewPool(router.Config{}.Transport)
	a.meta = router.New(a.pool, c.Servers, router.Config{})
	for _, s := range c.Servers {
		a.views = append(a.views, c.dial(s))
	}
	c.t.Cleanup(func() {
		for _, v := range a.views {
			v.Close()
		}
		_ = errors.Join(a.meta.Close(), a.pool.Close())
	})
	return a
}

// fromMeta reads the records of all shards, and takes note of their epochs. The first is the meta shard's.
func (a *audit) fromMeta(ctx context.Context) ([]shard.Descriptor, error) {
	for e, err := range a.meta.ScanIn(ctx, shard.MetaShardID, []byte(placement.PrefixDead), placement.PrefixEnd(placement.PrefixDead)) {
		if err != nil {
			return nil, err
		}
		id, err := placement.KeyID(placement.PrefixDead, e.Key)
		if err != nil {
			return nil, err
		}
		a.dead[id] = true
	}
	var list []shard.Descriptor
	seen := map[uint64]bool{}
	for e, err := range a.meta.ScanIn(ctx, shard.MetaShardID, []byte(placement.PrefixShard), placement.PrefixEnd(placement.PrefixShard)) {
		if err != nil {
			return nil, err
		}
		rec, err := placement.DecodeShard(e.Value)
		if err != nil {
			return nil, err
		}
		d := rec.Descriptor
		list, seen[uint64(d.Shard)] = append(list, d), true
		a.saw(uint64(d.Shard), d.Version, d.ConfVersion)
	}
	for id := range a.epochs {
		if !seen[id] && !a.dead[id] {
			return nil, fmt.Errorf("shard %d has gone from the meta shard, which has no record of its death", id)
		}
	}
	return list, nil
}

// saw requires that epochs only grow, and that the dead stay so.
func (a *audit) saw(id, version, confVersion uint64) {
	old := a.epochs[id]
	if version < old[0] || confVersion < old[1] {
		a.c.t.Errorf("shard %d: version %d/%d after %d/%d", id, version, confVersion, old[0], old[1])
	}
	if a.dead[id] {
		a.c.t.Errorf("shard %d was absorbed, and is back at version %d/%d", id, version, confVersion)
	}
	a.epochs[id] = [2]uint64{max(version, old[0]), max(confVersion, old[1])}
}

// tiles requires that ranges in order cover the key space without gap or overlap.
func tiles(list []shard.Descriptor) error {
	var end []byte
	for i, d := range list {
		if !bytes.Equal(d.Start, end) || i > 0 && len(end) == 0 {
			return fmt.Errorf("shard %d begins at %q, the one before it ends at %q", d.Shard, d.Start, end)
		}
		end = d.End
	}
	if len(list) == 0 || len(end) != 0 {
		return fmt.Errorf("%d shards end at %q", len(list), end)
	}
	return nil
}

// look compares the meta shard, the views of all nodes and the replicas that the nodes hold.
func (a *audit) look(ctx context.Context) ([]shard.Descriptor, error) {
	all, err := a.fromMeta(ctx)
	if err != nil {
		return nil, err
	}
	user := slices.Clone(all[1:])
	slices.SortFunc(user, func(x, y shard.Descriptor) int { return bytes.Compare(x.Start, y.Start) })
	if err := tiles(user); err != nil {
		return nil, fmt.Errorf("in the meta shard: %w", err)
	}
	for _, d := range all {
		for _, r := range d.Replicas {
			if len(d.Replicas) != a.replicas || r.Role != shard.RoleVoter {
				return nil, fmt.Errorf("shard %d has replicas %v", d.Shard, d.Replicas)
			}
		}
	}
	for i, v := range a.views {
		view, err := v.Shards(ctx, 0)
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		if len(view) != len(user) {
			return nil, fmt.Errorf("node %d knows %d shards, the meta shard %d", i+1, len(view), len(user))
		}
		for j, s := range view {
			if d := &user[j]; s.ID != uint64(d.Shard) || s.Version != d.Version || s.ConfVersion != d.ConfVersion || !bytes.Equal(s.Start, d.Start) || !bytes.Equal(s.End, d.End) {
				return nil, fmt.Errorf("node %d knows shard %d from %q at %d/%d, the meta shard %d from %q at %d/%d", i+1, s.ID, s.Start, s.Version, s.ConfVersion,
					d.Shard, d.Start, d.Version, d.ConfVersion)
			}
		}
	}
	return all, a.noZombies(ctx, all)
}

// noZombies compares how many replicas each node holds with how many there should be.
func (a *audit) noZombies(ctx context.Context, all []shard.Descriptor) error {
	want := map[string]int{}
	nodes, err := a.c.kv.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		for _, d := range all {
			for _, r := range d.Replicas {
				if uint64(r.Node) == n.ID {
					want[n.Name]++
				}
			}
		}
	}
	for _, p := range a.c.Nodes {
		if has := int(metrics(a.c.t, p)["kiloraft_shards_replicas"]); has != want[p.Name] {
			return fmt.Errorf("node %s holds %d replicas, %d shards have one there", p.Name, has, want[p.Name])
		}
	}
	return nil
}

// settled waits until look is content and all replicas of each shard are the same. Nothing must change the shards meanwhile.
func (a *audit) settled(d time.Duration) []shard.Descriptor {
	a.c.t.Helper()
	var all []shard.Descriptor
	eventually(a.c.t, d, func() (err error) {
		ctx, cancel := context.WithTimeout(a.c.t.Context(), 5*time.Second)
		defer cancel()
		all, err = a.look(ctx)
		return err
	})
	ctx, cancel := context.WithTimeout(a.c.t.Context(), d)
	defer cancel()
	var list []client.Shard
	for _, d := range all[1:] {
		list = append(list, client.Shard{ID: uint64(d.Shard), Replicas: make([]client.Replica, len(d.Replicas))})
	}
	if err := demo.WaitEqual(ctx, a.c.kv, list); err != nil {
		a.c.t.Fatal(err)
	}
	return all
}

// disks stops all nodes in order and compares what is on their disks with the shards that there are: each node has exactly its replicas.
func (a *audit) disks(all []shard.Descriptor) {
	t := a.c.t
	t.Helper()
	nodes, err := a.c.kv.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range a.c.Nodes {
		want := map[string]bool{}
		for _, n := range nodes {
			for _, d := range all {
				for _, r := range d.Replicas {
					if n.Name == p.Name && uint64(r.Node) == n.ID {
						want[fmt.Sprintf("%d/%d", d.Shard, r.Replica)] = true
					}
				}
			}
		}
		var v struct {
			OK       bool
			Problems []string
		}
		a.c.json(&v, "debug", "verify", "--data-dir", p.DataDir())
		if !v.OK {
			t.Errorf("%s: %v", p.Name, v.Problems)
		}
		var dump struct{ Lines []string }
		a.c.json(&dump, "debug", "state", "--data-dir", p.DataDir())
		has := map[string]bool{}
		for _, l := range dump.Lines {
			if f := strings.Fields(l); len(f) > 1 && f[0] == "record" {
				has[f[1]] = true
			}
		}
		if !maps.Equal(has, want) {
			t.Errorf("%s has the replicas %v on its disk, want %v", p.Name, slices.Sorted(maps.Keys(has)), slices.Sorted(maps.Keys(want)))
		}
	}
}

// admin is the side of the client that changes shards.
func (c *cluster) admin() client.Admin { return c.kv.(client.Admin) }

// quiet waits until no operation runs; one that stays is cancelled halfway, and must end then.
func (c *cluster) quiet(d time.Duration) {
	c.t.Helper()
	begin, cancelled := time.Now(), map[uint64]bool{}
	eventually(c.t, d, func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		ops, err := c.admin().Ops(ctx, 0)
		if err != nil {
			return err
		}
		for _, o := range ops {
			if o.Over() {
				continue
			}
			if time.Since(begin) > d/2 && !cancelled[o.ID] {
				cancelled[o.ID] = true
				c.t.Logf("cancelled: %s: step %q, %s", o.What, o.Step, o.Reason)
				if _, err := c.admin().CancelOp(ctx, o.ID); err != nil {
					return err
				}
			}
			b, _ := json.Marshal(o)
			err = fmt.Errorf("still runs: %s", b)
		}
		return err
	})
}

// seedOf gives the seed of a random test, and says it.
func seedOf(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("KILORAFT_E2E_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("KILORAFT_E2E_SEED=%d", seed)
	return seed
}
