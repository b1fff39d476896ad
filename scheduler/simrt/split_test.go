package simrt

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

const parentShard engine.ShardID = 7

// reshape is a cluster with one range of keys that is reshaped under load, and clients that count.
type reshape struct {
	t       *testing.T
	c       *Cluster
	rng     *rand.Rand
	clients []*counter
	next    engine.ShardID // free shard id

	steps map[string]int // labelled steps that were met
	// crashAt crashes the node that meets it, at its crashOn-th time.
	crashAt string
	crashOn int
	doomed  engine.NodeID
}

// counter is a client that adds to one key, with one write under way at a time, retried under the same sequence number.
type counter struct {
	id    int
	sess  shard.SessionID
	seq   uint64
	key   []byte
	sum   int64 // acknowledged
	busy  bool
	tried engine.Instant
	next  engine.Instant // when it writes again
	epoch int            // answers to earlier attempts are late
}

func newReshape(t *testing.T, opt Options, clients int) *reshape {
	t.Helper()
	t.Logf("seed %d", opt.Seed)
	x := &reshape{t: t, rng: rand.New(rand.NewPCG(opt.Seed, 99)), next: 100, steps: map[string]int{}}
	scheduler.FaultHook = x.met
	t.Cleanup(func() { scheduler.FaultHook = nil })
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	x.c = c
	if err := c.CreateShards(parentShard, parentShard); err != nil {
		t.Fatal(err)
	}
	for i := range clients {
		x.clients = append(x.clients, &counter{id: i, sess: shard.NewSessionID(1_700_000_000_000, uint64(i+1)), key: key(parentShard, i*37%1000)})
	}
	x.until(30*time.Second, "a first leader", func() bool { return c.Leader(parentShard) != nil })
	return x
}

func (x *reshape) met(node engine.NodeID, _ engine.ShardID, step string) {
	x.steps[step]++
	if step == x.crashAt {
		if x.crashOn--; x.crashOn == 0 {
			x.doomed = node
		}
	}
}

// step lets one event happen, and a crash that it has called for.
func (x *reshape) step() {
	if !x.c.Step() { // all are down
		for _, n := range x.c.Nodes {
			if err := x.c.Start(n.ID); err != nil {
				x.t.Fatal(err)
			}
		}
	}
	if x.c.Failed != nil {
		x.t.Fatal(x.c.Failed)
	}
	if x.doomed != 0 {
		if x.c.Node(x.doomed).Up {
			x.c.Crash(x.doomed)
		}
		x.doomed = 0
	}
}

func (x *reshape) run(d time.Duration) {
	for end := x.c.now + engine.Instant(d); x.c.now < end; {
		x.step()
		x.pump()
	}
}

func (x *reshape) until(d time.Duration, what string, cond func() bool) {
	x.t.Helper()
	for end := x.c.now + engine.Instant(d); !cond(); {
		if x.c.now > end {
			for _, n := range x.c.Nodes {
				if n.Up {
					for _, st := range n.Statuses() {
						x.t.Logf("node %d: %+v", n.ID, st)
					}
				}
			}
			x.t.Fatalf("no %s", what)
		}
		x.step()
		x.pump()
	}
}

// pump makes the clients write.
func (x *reshape) pump() {
	for _, k := range x.clients {
		if !k.busy && x.c.now < k.next || k.busy && x.c.now-k.tried < engine.Instant(50*time.Millisecond) {
			continue
		}
		if !k.busy {
			k.seq++
			k.busy = true
		}
		x.try(k)
	}
}

// owner finds the shard that owns a key: the highest version that any node knows, and the node that leads it.
func (x *reshape) owner(k []byte) (*shard.Descriptor, *Node) {
	var best *shard.Descriptor
	for _, n := range x.c.Nodes {
		if !n.Up {
			continue
		}
		for _, st := range n.Statuses() {
			if d := st.Descriptor; d != nil && d.Contains(k) && (best == nil || d.Version > best.Version) {
				best = d
			}
		}
	}
	if best == nil {
		return nil, nil
	}
	return best, x.c.Leader(best.Shard)
}

func (x *reshape) try(k *counter) {
	k.tried = x.c.now
	k.epoch++
	epoch := k.epoch
	d, n := x.owner(k.key)
	if n == nil {
		return
	}
	if x.rng.IntN(4) == 0 { // an older idea of who owns it
		if p := x.c.Leader(parentShard); p != nil {
			d, n = &shard.Descriptor{Shard: parentShard, Version: 1}, p
		}
	}
	body := shard.AppendWrite(nil, &shard.Write{Shard: d.Shard, Version: d.Version, Session: k.sess, Seq: k.seq, Lowest: k.seq,
		Ops: []shard.Op{{Kind: shard.OpAdd, Key: k.key, Delta: 1}}})
	life := n.life
	n.Submit(&scheduler.Request{Kind: scheduler.KindWrite, Shard: d.Shard, Body: body, Done: func(req *scheduler.Request) {
		if n.life != life || k.epoch != epoch {
			return
		}
		var moved *shard.MovedError
		switch {
		case req.Err == nil:
			var res shard.Result
			if err := shard.DecodeResult(req.Answer, &res); err != nil || len(res.Values) != 1 {
				x.t.Errorf("client %d: result %+v, %v", k.id, res, err)
				return
			}
			k.sum++
			if res.Values[0] != k.sum {
				x.t.Errorf("client %d: write %d counts to %d (replayed %v), expected %d", k.id, k.seq, res.Values[0], res.Replayed, k.sum)
				k.sum = res.Values[0]
			}
			k.busy = false
			k.next = x.c.now + engine.Instant(x.rng.Int64N(int64(8*time.Millisecond)))
		case errors.As(req.Err, &moved) && moved.NotApplied:
			x.t.Errorf("client %d: %v", k.id, req.Err) // it is one key: never cut anew
		case errors.Is(req.Err, shard.ErrSessionExpired), errors.Is(req.Err, shard.ErrInvalid):
			x.t.Errorf("client %d: %v", k.id, req.Err)
		}
	}})
}

// children makes the spec of a split of d at keys.
func (x *reshape) spec(d *shard.Descriptor, keys ...[]byte) *shard.Split {
	sp := &shard.Split{Version: d.Version, ConfVersion: d.ConfVersion}
	for _, k := range keys {
		c := shard.SplitChild{Shard: x.next, Start: k}
		for _, r := range d.Replicas {
			c.Replicas = append(c.Replicas, shard.SplitReplica{Node: r.Node, Replica: engine.ReplicaID(x.next*10) + engine.ReplicaID(r.Node)})
		}
		x.next++
		sp.Children = append(sp.Children, c)
	}
	return sp
}

// order gives the order to split to whoever leads, again and again, until it is done or void.
func (x *reshape) split(id engine.ShardID, sp *shard.Split) error {
	for end := x.c.now + engine.Instant(30*time.Second); x.c.now < end; x.run(20 * time.Millisecond) {
		n := x.c.Leader(id)
		if n == nil {
			continue
		}
		var out error
		done, life := false, n.life
		n.Sched.Split(id, sp, func(err error) { out, done = err, true })
		n.pump()
		x.until(20*time.Second, "answer to a split", func() bool { return done || n.life != life })
		if done && (out == nil || errors.Is(out, shard.ErrVoid) || errors.Is(out, shard.ErrInvalid)) {
			return out
		}
	}
	return ErrTimeout
}

func (x *reshape) mustSplit(id engine.ShardID, sp *shard.Split) {
	x.t.Helper()
	if err := x.split(id, sp); err != nil {
		x.t.Fatal(err)
	}
}

// heal starts and connects everything.
func (x *reshape) heal() {
	x.crashAt = ""
	x.c.Opt.Drop, x.c.Opt.Dup = 0, 0
	for _, n := range x.c.Nodes {
		x.c.Isolate(n.ID, false)
		if !n.Up {
			if err := x.c.Start(n.ID); err != nil {
				x.t.Fatal(err)
			}
		}
	}
}

// check lets the clients finish, and looks at the whole: ranges tile on every node, replicas are identical, counters exact.
func (x *reshape) check(shards int) {
	x.t.Helper()
	x.heal()
	end := x.c.now + engine.Instant(40*time.Second)
	for stable := 0; stable < 10; x.run(100 * time.Millisecond) { // what was begun may still be at work
		problem := x.layout(shards)
		if stable++; problem != "" {
			stable = 0
		}
		if problem != "" && x.c.now > end {
			for _, n := range x.c.Nodes {
				for _, st := range n.Statuses() {
					x.t.Logf("node %d: %+v %v", n.ID, st, st.Descriptor)
				}
			}
			x.t.Fatal(problem)
		}
	}
	writing := x.clients
	x.until(30*time.Second, "end of all writes", func() bool {
		return !slices.ContainsFunc(writing, func(k *counter) bool { return k.sum == 0 })
	})
	x.clients = nil
	for _, k := range writing { // the last ones
		x.until(30*time.Second, "end of a write", func() bool {
			if k.busy && x.c.now-k.tried > engine.Instant(50*time.Millisecond) {
				x.try(k)
			}
			return !k.busy
		})
	}
	x.run(2 * time.Second)
	for _, k := range writing {
		if got := x.read(k.key); got != strconv.FormatInt(k.sum, 10) {
			x.t.Errorf("client %d: %s holds %q, counted %d", k.id, k.key, got, k.sum)
		}
	}
	for _, st := range x.c.Nodes[0].Statuses() {
		checkReplicas1(x.t, x.c, st.Shard)
	}
	x.clients = writing
}

// layout tells what is wrong with the shards; "" if they tile on all nodes in the same way and none is in a merge.
func (x *reshape) layout(shards int) string {
	var first []scheduler.ReplicaStatus
	for i, n := range x.c.Nodes {
		if problem := tiles(n, shards); problem != "" {
			return fmt.Sprintf("node %d: %s", n.ID, problem)
		}
		list := n.Statuses()
		if i == 0 {
			first = list
		}
		if len(list) != len(first) {
			return fmt.Sprintf("node %d has %d shards", n.ID, len(list))
		}
		for j, st := range list {
			if o := first[j]; st.Shard != o.Shard || st.Descriptor.Version != o.Descriptor.Version || st.Merge.Role != shard.MergeNone {
				return fmt.Sprintf("node %d: %v, node 1: %v, merge %+v", n.ID, st.Descriptor, o.Descriptor, st.Merge)
			}
		}
	}
	return ""
}

func (x *reshape) read(k []byte) string {
	for range 100 {
		d, n := x.owner(k)
		if n == nil {
			x.run(50 * time.Millisecond)
			continue
		}
		done := false
		req := &scheduler.Request{Kind: scheduler.KindRead, Shard: d.Shard, Body: shard.AppendRead(nil, &shard.Read{Shard: d.Shard,
			Version: d.Version, Keys: [][]byte{k}}), Done: func(*scheduler.Request) { done = true }}
		n.Submit(req)
		x.until(10*time.Second, "answer to a read", func() bool { return done || !n.Up })
		if done && req.Err == nil {
			e, err := shard.DecodeAnswer(req.Answer, [][]byte{k}, nil)
			if err != nil {
				x.t.Fatal(err)
			}
			return string(e[0].Value)
		}
		x.run(50 * time.Millisecond)
	}
	x.t.Fatalf("%s cannot be read", k)
	return ""
}

// tiles tells what is wrong with the ranges of the shards of a node; "" if they tile the parent's first range exactly.
func tiles(n *Node, shards int) string {
	var ds []*shard.Descriptor
	for _, st := range n.Statuses() {
		if st.Descriptor == nil {
			return fmt.Sprintf("shard %d is not initialised", st.Shard)
		}
		ds = append(ds, st.Descriptor)
	}
	slices.SortFunc(ds, func(a, b *shard.Descriptor) int { return bytes.Compare(a.Start, b.Start) })
	whole := Descriptor(n.c, parentShard)
	at := whole.Start
	for _, d := range ds {
		if !bytes.Equal(d.Start, at) {
			return fmt.Sprintf("%v does not start at %q", d, at)
		}
		at = d.End
	}
	if !bytes.Equal(at, whole.End) {
		return fmt.Sprintf("ends at %q", at)
	}
	if shards != 0 && len(ds) != shards {
		return fmt.Sprintf("%d shards, expected %d", len(ds), shards)
	}
	return ""
}

func cutKeys(n int) (keys [][]byte) {
	for i := 1; i < n; i++ {
		keys = append(keys, key(parentShard, 1000*i/n))
	}
	return keys
}

var roughDisk = vfs.CrashPolicy{KeepWrite: 0.3, TearWrite: 0.3, KeepDir: 0.5}

func smallLogs(cfg *scheduler.Config) {
	cfg.CheckpointAge = engine.Duration(700 * time.Millisecond)
	cfg.ShardLogEntriesKeep = 8
	cfg.ShardLogBytesMax = 8 << 10
	cfg.QuiesceAfter = engine.Duration(600 * time.Millisecond)
	cfg.LogSegmentsMax = 2
}

func TestSplit(t *testing.T) {
	for lanes := 1; lanes <= 3; lanes += 2 {
		t.Run(fmt.Sprint(lanes, "lanes"), func(t *testing.T) {
			x := newReshape(t, Options{Seed: 20, Lanes: lanes}, 20)
			x.run(300 * time.Millisecond)
			d, l := x.owner(key(parentShard, 0))
			sp := x.spec(d, cutKeys(10)...)
			x.mustSplit(parentShard, sp)
			at := x.c.now
			x.until(5*time.Second, "leaders of all children", func() bool {
				for i := range sp.Children {
					if x.c.Leader(sp.Children[i].Shard) == nil {
						return false
					}
				}
				return true
			})
			if took := time.Duration(x.c.now - at); took > 100*time.Millisecond {
				t.Errorf("the children had leaders after %v of simulated time", took)
			}
			t.Logf("leaders after %v", time.Duration(x.c.now-at))
			for i := range sp.Children { // appointed, not elected
				n := x.c.Leader(sp.Children[i].Shard)
				if st, _ := n.has(sp.Children[i].Shard); n != l || st.Term != 1 {
					t.Errorf("shard %d is led by node %d in term %d, its parent by node %d", st.Shard, n.ID, st.Term, l.ID)
				}
			}
			x.run(time.Second)
			// The same order again is done; one that names the same versions for other children is void.
			x.mustSplit(parentShard, sp)
			if err := x.split(parentShard, x.spec(d, key(parentShard, 5))); !errors.Is(err, shard.ErrVoid) {
				t.Errorf("a split of an old version: %v", err)
			}
			x.check(10)
			for _, n := range x.c.Nodes {
				m := n.Sched.Metrics()
				if m.SnapshotsSent.Load() != 0 {
					t.Errorf("node %d sent %d snapshots", n.ID, m.SnapshotsSent.Load())
				}
				for _, st := range n.Statuses() {
					if st.Descriptor.Version != 2 {
						t.Errorf("%v", st.Descriptor)
					}
				}
			}
			// Everybody crashes: what the disk holds is the same.
			for _, n := range x.c.Nodes {
				x.c.Crash(n.ID)
			}
			x.check(10)
		})
	}
}

var splitSteps = []string{"split: propose", "split: applied", "split: synced", "split: born", "split: checkpoint written", "split: settled"}

// TestSplitCrash kills a node at each labelled step of a split, once at the first node that meets it, once at the last.
func TestSplitCrash(t *testing.T) {
	for i, step := range splitSteps {
		for on := 1; on <= 3; on += 2 {
			if step == "split: propose" && on > 1 {
				continue
			}
			t.Run(fmt.Sprintf("%s %d", step, on), func(t *testing.T) {
				seed := uint64(200 + 10*i + on)
				x := newReshape(t, Options{Seed: seed, Lanes: 1 + int(seed/10%2), Crash: roughDisk, Config: smallLogs}, 15)
				x.run(500 * time.Millisecond)
				d, _ := x.owner(key(parentShard, 0))
				x.crashAt, x.crashOn = step, on
				x.mustSplit(parentShard, x.spec(d, cutKeys(5)...))
				x.run(2 * time.Second)
				if x.steps[step] < on {
					t.Fatalf("step was met %d times", x.steps[step])
				}
				x.check(5)
			})
		}
	}
}

// TestSplitAllCrash restarts all nodes at once before the split checkpoint of any is written.
func TestSplitAllCrash(t *testing.T) {
	for i, step := range splitSteps[1:] {
		t.Run(step, func(t *testing.T) {
			x := newReshape(t, Options{Seed: uint64(300 + i), Crash: roughDisk, Config: smallLogs}, 15)
			x.run(500 * time.Millisecond)
			d, _ := x.owner(key(parentShard, 0))
			sp := x.spec(d, cutKeys(5)...)
			before := x.steps[step]
			l := x.c.Leader(parentShard)
			l.Sched.Split(parentShard, sp, func(error) {})
			l.pump()
			x.until(5*time.Second, step, func() bool { return x.steps[step] > before+i%3 })
			for _, n := range x.c.Nodes {
				x.c.Crash(n.ID)
			}
			x.heal()
			x.run(3 * time.Second)
			if d, _ := x.owner(key(parentShard, 999)); d.Shard == parentShard { // it was not committed: give the order again
				x.mustSplit(parentShard, sp)
			}
			x.check(5)
		})
	}
}

// TestSplitInherited restarts all nodes when the leader has applied a split and appointed the children's leaders, and nothing of that is
// durable there. Whoever leads the parent then commits the same entry, also the node that it names: but in a later term, and another
// life, which may not appoint a second leader of the same term (rule Engine1).
func TestSplitInherited(t *testing.T) {
	again := 0
	for seed := uint64(700); seed < 706; seed++ {
		x := newReshape(t, Options{Seed: seed}, 15)
		x.run(500 * time.Millisecond)
		d, l := x.owner(key(parentShard, 0))
		sp := x.spec(d, cutKeys(5)...)
		l.Sched.Split(parentShard, sp, func(error) {})
		l.pump()
		x.until(5*time.Second, "split", func() bool { return x.steps["split: applied"] > 0 })
		if st, ok := l.has(sp.Children[0].Shard); !ok || st.Term != 1 || st.Leader.Node != l.ID {
			t.Fatalf("the child's leader is not appointed: %+v", st)
		}
		for _, n := range x.c.Nodes {
			x.c.Crash(n.ID)
		}
		x.heal()
		x.until(20*time.Second, "leaders", func() bool {
			for i := range sp.Children {
				if x.c.Leader(sp.Children[i].Shard) == nil {
					return false
				}
			}
			return true
		})
		if x.c.Leader(parentShard) == l {
			again++
		}
		for i := range sp.Children {
			n := x.c.Leader(sp.Children[i].Shard)
			if st, _ := n.has(sp.Children[i].Shard); st.Term == 1 {
				t.Errorf("node %d leads shard %d in the term that was given away in the life before", n.ID, st.Shard)
			}
		}
		x.check(5)
	}
	if again == 0 {
		t.Error("the parent never had the same leader again: the test tests nothing")
	}
}

// TestSplitLaggard lets a node miss the split and what follows: it catches up by the parent's log, or by snapshots of all.
func TestSplitLaggard(t *testing.T) {
	for i, away := range []time.Duration{300 * time.Millisecond, 6 * time.Second} {
		t.Run(away.String(), func(t *testing.T) {
			x := newReshape(t, Options{Seed: uint64(400 + i), Config: smallLogs}, 15)
			x.run(500 * time.Millisecond)
			d, l := x.owner(key(parentShard, 0))
			lagging := l.ID%3 + 1
			x.c.Isolate(lagging, true)
			x.mustSplit(parentShard, x.spec(d, cutKeys(4)...))
			x.run(away)
			x.c.Isolate(lagging, false)
			x.run(5 * time.Second)
			x.check(4)
		})
	}
}

// TestSplitNeedsSnapshot proposes a split that cannot be committed before the only other voter that is alive has got a snapshot: nothing may
// keep that from being cut.
func TestSplitNeedsSnapshot(t *testing.T) {
	x := newReshape(t, Options{Seed: 420, Config: smallLogs}, 15)
	x.run(500 * time.Millisecond)
	d, l := x.owner(key(parentShard, 0))
	lagging, other := l.ID%3+1, (l.ID+1)%3+1
	x.c.Isolate(lagging, true)
	x.run(6 * time.Second) // the log is purged beyond what it has
	if x.c.Leader(parentShard) != l {
		t.Fatal("the leader has changed: the test tests nothing")
	}
	x.c.Crash(other)
	x.c.Isolate(lagging, false)
	done := false
	l.Sched.Split(parentShard, x.spec(d, key(parentShard, 500)), func(err error) {
		if done = true; err != nil {
			t.Error(err)
		}
	})
	l.pump()
	x.until(20*time.Second, "split", func() bool { return done })
	if l.Sched.Metrics().SnapshotsSent.Load() == 0 {
		t.Error("no snapshot was sent: the test tests nothing")
	}
	x.check(2)
}

// TestSplitTombstone has a node on which one child was removed before the split was ever applied there (FAULTS R8): it is not made again, and its
// half of the data is garbage (the restart checks the partition).
func TestSplitTombstone(t *testing.T) {
	x := newReshape(t, Options{Seed: 450, Config: smallLogs}, 10)
	x.run(300 * time.Millisecond)
	d, l := x.owner(key(parentShard, 0))
	sp := x.spec(d, cutKeys(4)...)
	n := x.c.Node(l.ID%3 + 1)
	x.c.Crash(n.ID)
	dead := store.Key{Shard: sp.Children[1].Shard}
	for _, r := range sp.Children[1].Replicas {
		if r.Node == n.ID {
			dead.Replica = r.Replica
		}
	}
	if err := n.db.Write([]state.Change{{Record: shard.TombstoneRecord(dead, engine.LogID{Term: 1, Index: 1})}}, 0); err != nil {
		t.Fatal(err)
	}
	if err := x.c.Start(n.ID); err != nil {
		t.Fatal(err)
	}
	x.mustSplit(parentShard, sp)
	x.run(3 * time.Second)
	for range 2 {
		for _, st := range n.Statuses() {
			if st.Shard == dead.Shard {
				t.Fatalf("removed replica is back: %+v", st)
			}
		}
		if got := len(n.Statuses()); got != 3 {
			t.Fatalf("%d shards on the node", got)
		}
		x.c.Crash(n.ID)
		if err := x.c.Start(n.ID); err != nil {
			t.Fatal(err)
		}
		x.run(2 * time.Second)
	}
}

// TestSplitEarlyMessages lets candidates and leaders of the children reach a node that has not applied the split (FAULTS R1).
func TestSplitEarlyMessages(t *testing.T) {
	x := newReshape(t, Options{Seed: 460, Config: smallLogs}, 10)
	x.run(300 * time.Millisecond)
	d, l := x.owner(key(parentShard, 0))
	sp := x.spec(d, cutKeys(4)...)
	late := x.c.Node(l.ID%3 + 1)
	// It holds the entry, but learns of its commit only from heartbeats that do not come.
	x.c.Isolate(late.ID, true)
	x.mustSplit(parentShard, sp)
	x.until(5*time.Second, "leaders", func() bool {
		for i := range sp.Children {
			if x.c.Leader(sp.Children[i].Shard) == nil {
				return false
			}
		}
		return true
	})
	x.run(300 * time.Millisecond)
	for _, n := range x.c.Nodes {
		m := n.Sched.Metrics()
		t.Logf("node %d: splits %d, snapshots %d", n.ID, m.Splits.Load(), m.SnapshotsSent.Load())
	}
	// It hears from the leader of a child before it hears from the parent's.
	other := x.c.Node(6 - l.ID - late.ID)
	if err := l.Transfer(sp.Children[0].Shard, other.ID); err != nil {
		t.Fatal(err)
	}
	x.c.Isolate(late.ID, false)
	x.c.Cut(l.ID, late.ID, true)
	x.until(10*time.Second, "child made by a message", func() bool {
		return slices.ContainsFunc(late.Statuses(), func(st scheduler.ReplicaStatus) bool { return st.Descriptor == nil })
	})
	if late.Sched.Metrics().Splits.Load() > 0 {
		t.Error("the split was applied before: the test tests nothing")
	}
	x.c.Cut(l.ID, late.ID, false)
	x.until(10*time.Second, "split on the late node", func() bool { return late.Sched.Metrics().Splits.Load() > 0 })
	x.check(4)
	for _, n := range x.c.Nodes {
		if got := n.Sched.Metrics().SnapshotsSent.Load(); got != 0 {
			t.Errorf("node %d sent %d snapshots", n.ID, got)
		}
	}
}

// TestSplitChaos splits again and again while nodes crash and links fail.
func TestSplitChaos(t *testing.T) {
	for seed := uint64(500); seed < 503; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			x := newReshape(t, Options{Seed: seed, Lanes: 1 + int(seed%3), Drop: 0.02, Dup: 0.02, Crash: roughDisk, Config: smallLogs}, 12)
			for range 12 {
				k := key(parentShard, 1+x.rng.IntN(998))
				if d, n := x.owner(k); n != nil && !bytes.Equal(d.Start, k) {
					sp := x.spec(d, k)
					n.Sched.Split(d.Shard, sp, func(error) {})
					n.pump()
				}
				x.run(time.Duration(x.rng.IntN(1500)) * time.Millisecond)
				x.c.fault(t, x.rng)
			}
			x.check(0)
			t.Logf("%d shards, steps %v", len(x.c.Nodes[0].Statuses()), x.steps)
		})
	}
}

// TestSplitBySample cuts a shard into parts of about the same size.
func TestSplitBySample(t *testing.T) {
	x := newReshape(t, Options{Seed: 470}, 40)
	x.run(2 * time.Second)
	d, l := x.owner(key(parentShard, 0))
	var keys [][]byte
	var out error
	done := false
	l.Sched.SampleSplitKeys(parentShard, 4, func(k [][]byte, err error) { keys, out, done = k, err, true })
	l.pump()
	x.until(5*time.Second, "sampled keys", func() bool { return done })
	if out != nil || len(keys) != 3 {
		t.Fatalf("%q, %v", keys, out)
	}
	x.mustSplit(parentShard, x.spec(d, keys...))
	x.run(time.Second)
	x.check(4)
}

// TestSplitBeforeCheckpoint has a checkpoint of the shard become due when its split is proposed: the split is not made to wait for it.
func TestSplitBeforeCheckpoint(t *testing.T) {
	x := newReshape(t, Options{Seed: 1250, Config: func(cfg *scheduler.Config) { cfg.CheckpointShard = 1 }}, 0)
	put(t, x.c, parentShard, 1, "before")
	x.run(3 * time.Second) // all is in checkpoints
	d, n := x.owner(key(parentShard, 0))
	n.NoCheckpoints = true
	put(t, x.c, parentShard, 2, "dirty")
	met := scheduler.FaultHook
	scheduler.FaultHook = func(node engine.NodeID, id engine.ShardID, step string) {
		met(node, id, step)
		if step == "split: propose" {
			n.Sched.LookForCheckpoints()
		}
	}
	x.mustSplit(parentShard, x.spec(d, key(parentShard, 500)))
	n.NoCheckpoints = false
	x.run(time.Second)
	x.check(2)
}

// TestLateSplitMeetsFilledChild holds a follower's apply of the parent until its child was filled by a snapshot, and has taken writes: the split
// that it applies then must not put the child back (FAULTS R2).
func TestLateSplitMeetsFilledChild(t *testing.T) {
	x := newReshape(t, Options{Seed: 490, Config: func(cfg *scheduler.Config) {
		cfg.CheckpointBytes, cfg.CheckpointShard, cfg.CheckpointAge = 64<<10, 16<<10, engine.Duration(200*time.Millisecond)
	}}, 0)
	d, l := x.owner(key(parentShard, 0))
	n := x.c.Node(l.ID%3 + 1)
	n.NoCheckpoints = true
	value := strings.Repeat("v", 8<<10)
	k := 0
	x.until(10*time.Second, "held apply", func() bool {
		put(t, x.c, parentShard, k%1000, value)
		k++
		x.run(10 * time.Millisecond)
		return n.Sched.Metrics().AppliesHeld.Load() > 0
	})
	child := x.next
	x.mustSplit(parentShard, x.spec(d, key(parentShard, 500)))
	status := func(id engine.ShardID) scheduler.ReplicaStatus { st, _ := n.has(id); return st }
	x.until(20*time.Second, "snapshot of the child", func() bool { return status(child).Descriptor != nil })
	if v := status(parentShard).Descriptor.Version; v != 1 {
		t.Fatalf("the parent is at version %d: the test tests nothing", v)
	}
	body := shard.AppendWrite(nil, &shard.Write{Shard: child, Version: x.desc(child).Version, Ops: []shard.Op{{Kind: shard.OpPut, Key: key(parentShard, 600), Value: []byte("later")}}})
	if _, err := do(t, x.c, scheduler.KindWrite, child, body); err != nil {
		t.Fatal(err)
	}
	x.until(5*time.Second, "the write on the follower", func() bool {
		st, _ := l.has(child)
		return status(child).Last == st.Last
	})
	before := status(child)
	n.NoCheckpoints = false
	x.until(20*time.Second, "late split", func() bool { return status(parentShard).Descriptor.Version > 1 })
	if st := status(child); st.Last.Index < before.Last.Index || st.Applied.Index < before.Applied.Index {
		t.Fatalf("the split has put the child back from %+v to %+v", before, st)
	}
	x.check(2)
}
