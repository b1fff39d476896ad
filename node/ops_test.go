package node_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// waitOp waits until an operation is over, and wants it to end in a state.
func waitOp(t *testing.T, c *nodetest.Cluster, via int, id uint64, within time.Duration, want placement.OpState) *placement.Op {
	t.Helper()
	var last *placement.Op
	nodetest.Eventually(t, within, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		o, err := c.Node(via).ReadOp(ctx, id)
		if err != nil {
			return err
		}
		if last = o; o.State == placement.OpRunning {
			return fmt.Errorf("%s still runs: step %q, %d of %d, reason %q", o, o.Step, o.Done, o.Total, o.Reason)
		}
		return nil
	})
	if last.State != want {
		t.Fatalf("%s ended %s: %s", last, last.State, last.Error)
	}
	return last
}

// startOp starts an operation, trying again while the cluster cannot say.
func startOp(t *testing.T, c *nodetest.Cluster, via int, o placement.Op) uint64 {
	t.Helper()
	nodetest.Eventually(t, 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		again := o
		err := c.Node(via).StartOp(ctx, &again)
		if err == nil {
			o = again
		}
		return err
	})
	return o.ID
}

// traffic adds to counters through all nodes until stop is called, which returns how often and checks the sums.
type traffic struct {
	t      *testing.T
	c      *nodetest.Cluster
	stop   atomic.Bool
	wg     sync.WaitGroup
	errors atomic.Int64
	acked  [16]atomic.Int64
}

func startTraffic(t *testing.T, c *nodetest.Cluster, via ...int) *traffic {
	tr := &traffic{t: t, c: c}
	for w := range tr.acked {
		cl := c.Node(via[w%len(via)]).Client()
		tr.wg.Add(1)
		go func() {
			defer tr.wg.Done()
			for !tr.stop.Load() {
				ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
				_, err := cl.Add(ctx, key(1000+w), 1)
				cancel()
				if err != nil {
					tr.errors.Add(1)
					t.Errorf("add: %v", err)
					return
				}
				tr.acked[w].Add(1)
				time.Sleep(time.Millisecond) // the pace of the load
			}
		}()
	}
	return tr
}

func (tr *traffic) end(via int) {
	tr.t.Helper()
	tr.stop.Store(true)
	tr.wg.Wait()
	total := int64(0)
	for w := range tr.acked {
		want := tr.acked[w].Load()
		total += want
		e, err := tr.c.Node(via).Client().Get(deadline(tr.t, 10*time.Second), key(1000+w))
		if err != nil || string(e.Value) != fmt.Sprint(want) {
			tr.t.Errorf("counter %d is %q, want %d: %v", w, e.Value, want, err)
		}
	}
	tr.t.Logf("%d additions, %d errors", total, tr.errors.Load())
}

// count returns how many user replicas and leaders each node holds.
func count(t *testing.T, c *nodetest.Cluster, nodes ...int) (replicas, leaders map[int]int) {
	t.Helper()
	replicas, leaders = map[int]int{}, map[int]int{}
	for _, i := range nodes {
		list, err := c.Node(i).Replicas(deadline(t, 5*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range list {
			if st.Shard == shard.MetaShardID {
				continue
			}
			replicas[i]++
			if st.Role == engine.RoleLeader {
				leaders[i]++
			}
		}
	}
	return replicas, leaders
}

func TestMoveUnderLoad(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 8, 3)
	four := c.Add()
	write(t, c, 0, 50, "v")
	tr := startTraffic(t, c, 0, 1, 2, four)
	from, to := c.Node(0).ID(), c.Node(four).ID()
	for id := engine.ShardID(2); id <= 5; id++ {
		op := startOp(t, c, int(id)%3, placement.Op{Kind: placement.OpMove, Shard: id, From: from, To: to})
		o := waitOp(t, c, 1, op, 20*time.Second, placement.OpDone)
		t.Logf("%s took %d ms", o, o.EndMS-o.StartMS)
	}
	// The meta shard moves as others do, under its own driver.
	op := startOp(t, c, 1, placement.Op{Kind: placement.OpMove, Shard: shard.MetaShardID, From: from, To: to})
	waitOp(t, c, four, op, 20*time.Second, placement.OpDone)
	op = startOp(t, c, 1, placement.Op{Kind: placement.OpTransfer, Shard: 3, To: to})
	waitOp(t, c, 1, op, 10*time.Second, placement.OpDone)
	replicas, leaders := count(t, c, 0, 1, 2, four)
	if replicas[0] != 4 || replicas[four] != 4 || leaders[four] == 0 {
		t.Errorf("replicas %v, leaders %v", replicas, leaders)
	}
	tr.end(2)
	read2(t, c, four, 50)
}

// read2 finds n keys through node i.
func read2(t *testing.T, c *nodetest.Cluster, i, n int) {
	t.Helper()
	for k := range n {
		if e, err := c.Node(i).Client().Get(deadline(t, 10*time.Second), key(k)); err != nil || string(e.Value) != "v" {
			t.Fatalf("get %q through node %d: %q, %v", key(k), i+1, e.Value, err)
		}
	}
}

func TestWrongOperations(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 4, 3)
	four := c.Add()
	ctx := deadline(t, 30*time.Second)
	n := c.Node(1)
	one, other := c.Node(0).ID(), c.Node(four).ID()
	for _, x := range []struct {
		op   placement.Op
		want error
		text string
	}{
		{placement.Op{Kind: placement.OpMove, Shard: 2, From: one, To: c.Node(2).ID()}, shard.ErrInvalid, "already"},
		{placement.Op{Kind: placement.OpMove, Shard: 2, From: other, To: one}, shard.ErrInvalid, "holds no replica"},
		{placement.Op{Kind: placement.OpMove, Shard: 2, From: one, To: 99}, shard.ErrNotFound, "node 99"},
		{placement.Op{Kind: placement.OpMove, Shard: 77, From: one, To: other}, shard.ErrNotFound, "shard 77"},
		{placement.Op{Kind: placement.OpTransfer, Shard: 2, To: other}, shard.ErrInvalid, "no voter"},
		{placement.Op{Kind: placement.OpDrain, From: 99}, shard.ErrNotFound, "node 99"},
		{placement.Op{Kind: 99}, shard.ErrInvalid, "not known"},
	} {
		err := n.StartOp(ctx, &x.op)
		if !errors.Is(err, x.want) || !strings.Contains(err.Error(), x.text) {
			t.Errorf("%v: %v, want %v with %q", &x.op, err, x.want, x.text)
		}
	}
	if err := n.SetNode(ctx, api.NodeSetRequest{Node: one, Action: api.NodeRemove}); !errors.Is(err, shard.ErrInvalid) || !strings.Contains(err.Error(), "holds") {
		t.Errorf("removing a node that holds replicas: %v", err)
	}
	if err := n.SetNode(ctx, api.NodeSetRequest{Node: one, Action: api.NodeRemove, Force: true}); !errors.Is(err, shard.ErrInvalid) || !strings.Contains(err.Error(), "alive") {
		t.Errorf("removing a node by force that lives: %v", err)
	}
	// Two operators, one shard (FAULTS A12).
	c.Kill(four)
	nodetest.Eventually(t, 10*time.Second, func() error {
		o := placement.Op{Kind: placement.OpMove, Shard: 2, From: one, To: other}
		err := n.StartOp(ctx, &o)
		if !errors.Is(err, shard.ErrUnavailable) {
			if err == nil {
				_ = n.CancelOp(ctx, o.ID)
			}
			return fmt.Errorf("a move to a node that is down: %v", err)
		}
		return nil
	})
	c.Restart(four)
}

// The second operation on a shard is refused, by the name of the first; a cancelled move leaves everything as it was.
func TestBusyAndCancel(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 4, 3)
	four := c.Add()
	one, to := c.Node(0).ID(), c.Node(four).ID()
	ctx := deadline(t, 30*time.Second)
	op := placement.Op{Kind: placement.OpMove, Shard: 2, From: one, To: to}
	id := startOp(t, c, 1, op)
	c.Kill(four) // the move cannot end, or has ended already
	second := placement.Op{Kind: placement.OpTransfer, Shard: 2, To: c.Node(2).ID()}
	var err error
	for { // until the shard has a leader that says yes or no
		again := second
		if err = c.Node(2).StartOp(ctx, &again); !errors.Is(err, shard.ErrUnavailable) {
			break
		}
	}
	first, rerr := c.Node(2).ReadOp(ctx, id)
	if rerr != nil {
		t.Fatal(rerr)
	}
	if first.State != placement.OpRunning {
		t.Skip("the move was too fast for this test")
	}
	if !errors.Is(err, shard.ErrInvalid) || !strings.Contains(err.Error(), fmt.Sprintf("operation %d (move shard 2", id)) {
		t.Errorf("the second operation: %v", err)
	}
	if err := c.Node(1).CancelOp(ctx, id); err != nil {
		t.Fatal(err)
	}
	waitOp(t, c, 1, id, 20*time.Second, placement.OpCancelled)
	c.Restart(four)
	write(t, c, 1, 20, "v")
	// The shard is free again, and can move.
	id = startOp(t, c, 1, op)
	waitOp(t, c, 1, id, 20*time.Second, placement.OpDone)
}

// startDying starts three nodes whose driver dies at each step that begins so, the first times that one gets there. A test in
// which none dies fails: it shows nothing.
func startDying(t *testing.T, steps string, times int) *nodetest.Cluster {
	var mu sync.Mutex
	seen, died := map[string]int{}, 0
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		node.SetFault(cfg, func(step string) error {
			mu.Lock()
			defer mu.Unlock()
			if seen[step]++; strings.HasPrefix(step, steps) && seen[step] <= times {
				died++
				return errors.New("the driver dies here") // its goroutine ends, and the next refresh starts another
			}
			return nil
		})
	}})
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		if t.Logf("steps: %v", seen); died == 0 {
			t.Error("no driver died")
		}
	})
	return c
}

// The driver dies between any two steps, as often as it likes: another goes on, and the result is the same (rule Cluster6).
func TestDriverDies(t *testing.T) {
	c := startDying(t, "op ", 2)
	c.Init(0, 6, 3)
	four := c.Add()
	tr := startTraffic(t, c, 1, four)
	var ids []uint64
	for id := engine.ShardID(2); id <= 4; id++ {
		ids = append(ids, startOp(t, c, 1, placement.Op{Kind: placement.OpMove, Shard: id, From: c.Node(0).ID(), To: c.Node(four).ID()}))
	}
	// And the node that leads the meta shard dies for real.
	leader := -1
	for i := range 3 {
		st, err := c.Node(i).Sched().Status(deadline(t, time.Second), shard.MetaShardID)
		if err == nil && st.Role == engine.RoleLeader {
			leader = i
		}
	}
	if leader == 0 || leader == 2 { // node 1 carries the traffic
		c.Kill(leader)
		c.Restart(leader)
	}
	for _, id := range ids {
		waitOp(t, c, 1, id, 30*time.Second, placement.OpDone)
	}
	tr.end(1)
}

// Three nodes become five and three again, under traffic: no error, exact counters, even numbers.
func TestJoinRebalanceDrainRemove(t *testing.T) {
	const shards = 50
	c := nodetest.Start(t, 3, nodetest.Options{ElectionTimeout: time.Second, Config: func(i int, cfg *node.Config) {
		if i >= 3 {
			cfg.Fatal = func(error) {}
		}
	}})
	c.Init(0, shards, 3)
	write(t, c, 0, 100, "v")
	four, five := c.Add(), c.Add()
	tr := startTraffic(t, c, 0, 1, 2)
	began := time.Now()
	nodetest.Eventually(t, 10*time.Second, func() error {
		plan, err := c.Node(1).PlanOf(deadline(t, 10*time.Second))
		if err != nil || len(plan.Moves) < 57 || plan.After[0].Min < 29 || plan.After[1].Max > 12 {
			return fmt.Errorf("plan: %+v, %v", plan, err)
		}
		return nil
	})
	id := startOp(t, c, 1, placement.Op{Kind: placement.OpRebalance})
	waitOp(t, c, 1, id, 60*time.Second, placement.OpDone)
	replicas, leaders := count(t, c, 0, 1, 2, four, five)
	t.Logf("3 to 5 nodes in %v: replicas %v, leaders %v", time.Since(began), replicas, leaders)
	for _, i := range []int{0, 1, 2, four, five} {
		if replicas[i] < 28 || replicas[i] > 32 || leaders[i] < 8 || leaders[i] > 12 {
			t.Errorf("node %d: %d replicas, %d leaders", i+1, replicas[i], leaders[i])
		}
	}
	began = time.Now()
	ids := []uint64{startOp(t, c, 1, placement.Op{Kind: placement.OpDrain, From: c.Node(four).ID()}),
		startOp(t, c, 2, placement.Op{Kind: placement.OpDrain, From: c.Node(five).ID()})}
	for _, id := range ids {
		waitOp(t, c, 1, id, 60*time.Second, placement.OpDone)
	}
	t.Logf("5 to 3 nodes in %v", time.Since(began))
	for _, i := range []int{four, five} {
		if list, err := c.Node(i).Replicas(deadline(t, time.Second)); err != nil || len(list) > 0 {
			t.Errorf("drained node %d holds %d replicas, %v", i+1, len(list), err)
		}
		if err := c.Node(0).SetNode(deadline(t, 10*time.Second), api.NodeSetRequest{Node: c.Node(i).ID(), Action: api.NodeRemove}); err != nil {
			t.Error(err)
		}
	}
	tr.end(0)
	read2(t, c, 2, 100)
	// A removed node that comes back is told, and stops.
	c.Kill(five)
	nodetest.Eventually(t, 10*time.Second, func() error {
		n, err := node.Open(context.Background(), node.Config{DataDir: c.Dir(five), Listen: c.Addrs()[five], Join: c.Addrs()[:3], Fatal: func(error) {}})
		if err == nil {
			n.Abort()
			return errors.New("it started")
		}
		if !errors.Is(err, node.ErrRefused) {
			return err
		}
		return nil
	})
}

// The replicas of a node that stays away are replaced; when it comes back it finds that it was, and cleans up (FAULTS M9, M10).
func TestRepair(t *testing.T) {
	c := nodetest.Start(t, 4, nodetest.Options{Config: func(_ int, cfg *node.Config) { cfg.RepairAfter = time.Second }})
	c.Init(0, 12, 3)
	write(t, c, 1, 30, "v")
	c.Kill(2)
	nodetest.Eventually(t, 10*time.Second, func() error {
		st, err := c.Node(0).StatusOf(deadline(t, 2*time.Second))
		if err != nil || !strings.Contains(strings.Join(st.Problems, "\n"), "is down since") {
			return fmt.Errorf("problems: %+v, %v", st, err)
		}
		return nil
	})
	nodetest.Eventually(t, 30*time.Second, func() error {
		if replicas, _ := count(t, c, 0, 1, 3); replicas[0] != 12 || replicas[1] != 12 || replicas[3] != 12 {
			return fmt.Errorf("replicas: %v", replicas)
		}
		return nil
	})
	c.Restart(2)
	nodetest.Eventually(t, 20*time.Second, func() error {
		if replicas, _ := count(t, c, 2); replicas[2] != 0 {
			return fmt.Errorf("replicas: %v", replicas)
		}
		return nil
	})
	read(t, c, 2, 30, "v")
	// A disk is lost: the node comes back as another one.
	old := c.Node(2).ID()
	c.Kill(2)
	c.Wipe(2)
	c.Restart(2)
	nodetest.Eventually(t, 10*time.Second, func() error {
		if id := c.Node(2).ID(); id == 0 || id == old {
			return fmt.Errorf("node id %d", id)
		}
		return nil
	})
}

// A node that was cut off for so long that its replicas were replaced never stopped: it has nothing to compare itself with when it comes
// back but that it finds no leader.
func TestRepairOfCutOffNode(t *testing.T) {
	var cb cable
	c := nodetest.Start(t, 4, nodetest.Options{Config: func(i int, cfg *node.Config) {
		if cfg.RepairAfter = time.Second; i == 3 {
			cb.plug(cfg)
		}
	}})
	c.Init(0, 12, 3)
	if st, err := c.Node(3).Sched().Status(deadline(t, time.Second), shard.MetaShardID); err == nil {
		t.Fatalf("node 4 holds a replica of the meta shard, which would tell it: %+v", st)
	}
	cb.setCut(true)
	nodetest.Eventually(t, 30*time.Second, func() error {
		if replicas, _ := count(t, c, 0, 1, 2); replicas[0] != 12 || replicas[1] != 12 || replicas[2] != 12 {
			return fmt.Errorf("replicas: %v", replicas)
		}
		return nil
	})
	cb.setCut(false)
	nodetest.Eventually(t, 20*time.Second, func() error {
		if replicas, _ := count(t, c, 3); replicas[3] != 0 {
			return fmt.Errorf("replicas: %v", replicas)
		}
		return nil
	})
}

// A shard is split by keys and by size under traffic, while drivers die; the children move as any shard does. What makes no sense is refused.
func TestSplitOperation(t *testing.T) {
	c := startDying(t, "op split", 1)
	c.Init(0, 1, 3)
	four := c.Add()
	write(t, c, 0, 200, "v")
	ctx := deadline(t, 50*time.Second)
	for _, x := range []struct {
		op   placement.Op
		text string
	}{
		{placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{[]byte("a"), []byte("a")}}, "twice"},
		{placement.Op{Kind: placement.OpSplit, Shard: 2, Parts: 1}, "1 parts"},
		{placement.Op{Kind: placement.OpSplit, Shard: shard.MetaShardID, Parts: 2}, "meta"},
	} {
		if err := c.Node(1).StartOp(ctx, &x.op); !errors.Is(err, shard.ErrInvalid) || !strings.Contains(err.Error(), x.text) {
			t.Errorf("%v: %v, want %q", &x.op, err, x.text)
		}
	}
	tr := startTraffic(t, c, 0, 1, 2, four)
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpSplit, Shard: 2, Parts: 20}), 20*time.Second, placement.OpDone)
	waitOp(t, c, 0, startOp(t, c, 2, placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{{1}, {0}}}), 20*time.Second, placement.OpDone)
	again := placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{{1}}}
	if err := c.Node(0).StartOp(ctx, &again); !errors.Is(err, shard.ErrInvalid) {
		t.Errorf("split again at the same key: %v", err)
	}
	waitOp(t, c, 1, startOp(t, c, 1, placement.Op{Kind: placement.OpRebalance}), 30*time.Second, placement.OpDone)
	replicas, leaders := count(t, c, 0, 1, 2, four)
	t.Logf("replicas %v, leaders %v", replicas, leaders)
	if replicas[four] < 14 || replicas[four] > 20 {
		t.Errorf("replicas: %v", replicas)
	}
	tr.end(1)
	read2(t, c, four, 200)
}

// A learner that no operation wants, as a driver that came too late may add it, is removed again.
func TestStrayLearner(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{ElectionTimeout: 200 * time.Millisecond})
	c.Init(0, 2, 3)
	four := c.Add()
	added := false
	for i := range 3 {
		list, err := c.Node(i).Sched().LeadsOf(deadline(t, 5*time.Second), 2)
		if err != nil || len(list) != 1 {
			continue
		}
		d := list[0].Descriptor
		err = c.Node(i).Sched().ChangeMembership(deadline(t, 5*time.Second), scheduler.MembershipChange{Shard: 2, Version: d.Version, ConfVersion: d.ConfVersion,
			Replicas: append(append([]shard.ReplicaDesc(nil), d.Replicas...), shard.ReplicaDesc{Replica: 999, Node: c.Node(four).ID(), Role: shard.RoleLearner})})
		if err != nil {
			t.Fatal(err)
		}
		added = true
	}
	if !added {
		t.Skip("no leader just now")
	}
	has := func(want int) func() error {
		return func() error {
			if replicas, _ := count(t, c, four); replicas[four] != want {
				return fmt.Errorf("replicas %v, want %d", replicas, want)
			}
			return nil
		}
	}
	nodetest.Eventually(t, 10*time.Second, has(1))
	nodetest.Eventually(t, 30*time.Second, has(0))
}

// Shards are merged and split again under traffic; neighbours that are none are refused, and what was absorbed is forgotten.
func TestMergeOperation(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 4, 3)
	write(t, c, 0, 100, "v")
	ctx := deadline(t, 50*time.Second)
	wrong := placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 4}
	if err := c.Node(1).StartOp(ctx, &wrong); !errors.Is(err, shard.ErrInvalid) {
		t.Errorf("a merge of shards that are no neighbours: %v", err)
	}
	tr := startTraffic(t, c, 0, 1, 2)
	for _, right := range []engine.ShardID{3, 4, 5} {
		id := startOp(t, c, int(right)%3, placement.Op{Kind: placement.OpMerge, Shard: 2, Other: right})
		o := waitOp(t, c, 1, id, 20*time.Second, placement.OpDone)
		t.Logf("%s took %d ms", o, o.EndMS-o.StartMS)
		nodetest.Eventually(t, 20*time.Second, func() error { // as soon as the node has heard of it
			err := c.Node(1).StartOp(ctx, &placement.Op{Kind: placement.OpMerge, Shard: 2, Other: right})
			if !errors.Is(err, shard.ErrNotFound) || !strings.Contains(err.Error(), "was merged into shard 2") {
				return fmt.Errorf("a merge with shard %d, which is no more: %w", right, err)
			}
			return nil
		})
	}
	nodetest.Eventually(t, 10*time.Second, func() error {
		st, err := c.Node(2).StatusOf(deadline(t, 3*time.Second))
		if replicas, _ := count(t, c, 0, 1, 2); err != nil || len(st.Problems) > 0 || replicas[0]+replicas[1]+replicas[2] != 3 {
			return fmt.Errorf("%+v, %v, replicas %v", st, err, replicas)
		}
		return nil
	})
	id := startOp(t, c, 1, placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{{0x40}, {0x80}}})
	waitOp(t, c, 1, id, 20*time.Second, placement.OpDone)
	tr.end(1)
	read2(t, c, 0, 100)
}

// A snapshot of the first user shard, which begins where the meta shard does and has a higher version after a split, does not take the meta
// shard's replica for absorbed.
func TestMoveBesideMeta(t *testing.T) {
	c := nodetest.Start(t, 4, nodetest.Options{})
	c.Init(0, 4, 3)
	write(t, c, 0, 50, "v")
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{[]byte("\x01")}}), 20*time.Second, placement.OpDone)
	holds := func(i int, id engine.ShardID) bool {
		st, err := c.Node(i).Sched().Status(deadline(t, time.Second), id)
		return err == nil && st.Descriptor != nil
	}
	meta := map[int]bool{}
	for i := range 4 {
		meta[i] = holds(i, shard.MetaShardID)
	}
	for range 4 { // all around: each node gets a snapshot of shard 2 at some time
		for i := range 4 {
			if from := (i + 1) % 4; !holds(i, 2) {
				op := placement.Op{Kind: placement.OpMove, Shard: 2, From: c.Node(from).ID(), To: c.Node(i).ID()}
				waitOp(t, c, 0, startOp(t, c, 0, op), 20*time.Second, placement.OpDone)
				break
			}
		}
	}
	for i := range 4 {
		if meta[i] && !holds(i, shard.MetaShardID) {
			t.Errorf("node %d has lost its replica of the meta shard", i)
		}
	}
}
