package recovery_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/recovery"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// disk is the directory of a killed node, to whose log a test adds what a leader may have sent before it died.
type disk struct {
	t    *testing.T
	log  *raftlog.Log
	rec  *raftlog.Recovery
	desc map[engine.ShardID]*shard.Descriptor
	keys map[engine.ShardID]store.Key
	last map[engine.ShardID]engine.LogID
}

func openDisk(t *testing.T, dir string) *disk {
	t.Helper()
	db, err := state.OpenOffline(node.StatePath(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d := &disk{t: t, desc: map[engine.ShardID]*shard.Descriptor{}, keys: map[engine.ShardID]store.Key{}, last: map[engine.ShardID]engine.LogID{}}
	list, err := db.Records()
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		if d.desc[list[i].Shard], err = shard.DescriptorOf(&list[i]); err != nil {
			t.Fatal(err)
		}
		d.keys[list[i].Shard] = list[i].Key
	}
	if d.log, d.rec, err = raftlog.Open(vfs.OS(), node.LogPath(dir), raftlog.Options{SegmentBytes: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	for id, k := range d.keys {
		d.log.Lane(0).Adopt(k)
		d.last[id] = d.rec.Replicas[k].Last
	}
	return d
}

// add appends an entry of a term, 0 for that of the last entry, and returns where it is.
func (d *disk) add(id engine.ShardID, term uint64, kind engine.EntryKind, payload []byte) engine.LogID {
	last := d.last[id]
	at := engine.LogID{Term: max(term, last.Term), Index: last.Index + 1}
	d.log.Lane(0).Append(d.keys[id], raftlog.Run{Term: at.Term, First: at.Index, Count: 1, Special: kind != engine.EntryNormal,
		Body: raftlog.AppendEntry(nil, kind, payload)})
	d.last[id] = at
	return at
}

func (d *disk) put(id engine.ShardID, term uint64, key []byte, value string) {
	w := shard.Write{Shard: id, Version: 1, Ops: []shard.Op{{Kind: shard.OpPut, Key: key, Value: []byte(value)}}}
	d.add(id, term, engine.EntryNormal, shard.AppendWriteEntry(nil, time.Now().UnixMilli(), shard.AppendWrite(nil, &w)))
}

func (d *disk) step(id engine.ShardID, kind shard.CommandKind, s shard.MergeStep) engine.LogID {
	return d.add(id, 0, engine.EntryBarrier, shard.AppendMergeEntry(nil, kind, 0, &s))
}

func (d *disk) close() {
	d.t.Helper()
	d.log.Lane(0).Submit()
	if _, err := d.log.Flush(); err != nil {
		d.t.Fatal(err)
	}
	if err := d.log.Close(); err != nil {
		d.t.Fatal(err)
	}
}

func inspect(t *testing.T, dir string) *recovery.Report {
	t.Helper()
	r, err := recovery.Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func recoverDirs(t *testing.T, plan *recovery.Plan, dirs ...string) {
	t.Helper()
	for _, step := range []func(string, *recovery.Plan) (recovery.Applied, error){recovery.Prepare, recovery.Commit} {
		for _, dir := range dirs {
			if _, err := step(dir, plan); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Whatever the leader had sent to the survivor before all died takes effect by the ordinary code: writes, a split, a joint membership, and
// merges, one that was decided and one that was not.
func TestTails(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 7, 3) // shards 2 to 8
	ctx := deadline(t, 60*time.Second)
	inside := func(d *shard.Descriptor, s string) []byte { return append(slices.Clone(d.Start), s...) }
	// Write through all shards; which keys are whose follows from the descriptors on the disk, which the plan of a new cluster makes.
	starts := map[engine.ShardID][]byte{}
	for id := engine.ShardID(2); id <= 8; id++ {
		start := []byte{byte((int(id) - 2) * 256 / 7), 0xff} // a little behind the start of the shard
		starts[id] = start
		if _, err := c.Node(0).Client().Put(ctx, start, fmt.Appendf(nil, "old %d", id)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		c.Kill(i)
	}
	d := openDisk(t, c.Dir(0))
	for id, k := range starts {
		if !d.desc[id].Contains(k) {
			t.Fatalf("key %x is not in %v", k, d.desc[id])
		}
	}
	tail := inside(d.desc[2], "\x01")
	d.put(2, 0, tail, "sent, never committed")
	middle := inside(d.desc[3], "\xf0")
	d.add(3, 0, engine.EntryBarrier, shard.AppendSplitEntry(nil, 0, &shard.Split{Version: 1, ConfVersion: 1, Children: []shard.SplitChild{{Shard: 100, Start: middle,
		Replicas: []shard.SplitReplica{{Node: 1, Replica: 901}, {Node: 2, Replica: 902}, {Node: 3, Replica: 903}}}}}))
	var old, next []engine.Peer
	for _, r := range d.desc[4].Replicas {
		old = append(old, r.Peer())
		if r.Node != 3 {
			next = append(next, r.Peer())
		}
	}
	joint := engine.Membership{Voters: [][]engine.Peer{old, append(next, engine.Peer{Node: 4, Replica: 904})}}
	d.add(4, 0, engine.EntryMembership, raftlog.AppendMembership(nil, &joint))
	d.step(5, shard.CommandPrepareMerge, shard.MergeStep{Version: 1, ConfVersion: 1, Other: 6, OtherVersion: 1, OtherConfVersion: 1})
	d.step(6, shard.CommandFreeze, shard.MergeStep{Version: 1, ConfVersion: 1, Other: 5})
	d.step(7, shard.CommandPrepareMerge, shard.MergeStep{Version: 1, ConfVersion: 1, Other: 8, OtherVersion: 1, OtherConfVersion: 1})
	freeze := d.step(8, shard.CommandFreeze, shard.MergeStep{Version: 1, ConfVersion: 1, Other: 7})
	d.step(7, shard.CommandMerge, shard.MergeStep{Version: 2, ConfVersion: 1, Other: 8, OtherVersion: 1, OtherConfVersion: 1, Freeze: freeze})
	d.close()

	before := snapshot(t, c.Dir(0))
	plan, err := recovery.MakePlan([]*recovery.Report{inspect(t, c.Dir(0))}, []uint64{2, 3, 4})
	if err != nil {
		t.Fatal(err)
	}
	if after := snapshot(t, c.Dir(0)); before != after {
		t.Error("to inspect a directory changed it")
	}
	var ids []uint64
	for i := range plan.Shards {
		ids = append(ids, plan.Shards[i].Shard)
	}
	if want := []uint64{1, 2, 3, 4, 5, 6, 7, 100}; !slices.Equal(ids, want) { // 8 is absorbed, 100 is born
		t.Fatalf("shards %v, want %v", ids, want)
	}
	if s := plan.Shards[1]; s.Undecided == 0 || s.FirstLost != s.Last.Index+1 {
		t.Errorf("shard 2: %+v", s)
	}
	recoverDirs(t, plan, c.Dir(0))
	for _, r := range inspect(t, c.Dir(0)).Replicas {
		if slices.Contains(ids, r.Shard) && (r.Committed != r.Last || r.Last.Term < 1<<20) {
			t.Errorf("shard %d is not committed to its end: %v of %v", r.Shard, r.Committed, r.Last)
		}
	}
	c.Restart(0)
	for id, k := range starts {
		want := fmt.Sprintf("old %d", id)
		nodetest.Eventually(t, 15*time.Second, func() error {
			e, err := c.Node(0).Client().Get(deadline(t, 2*time.Second), k)
			if err != nil || string(e.Value) != want {
				return fmt.Errorf("shard %d: %q, %w", id, e.Value, err)
			}
			return nil
		})
	}
	if e, err := c.Node(0).Client().Get(ctx, tail); err != nil || string(e.Value) != "sent, never committed" {
		t.Errorf("the undecided entry: %q, %v", e.Value, err)
	}
	for id, k := range starts { // every shard takes writes, on both sides of the split as well
		if _, err := c.Node(0).Client().Put(ctx, k, []byte("new")); err != nil {
			t.Errorf("put to shard %d: %v", id, err)
		}
	}
	if _, err := c.Node(0).Client().Put(ctx, inside(d.desc[3], "\x01"), []byte("new")); err != nil {
		t.Error(err)
	}
	c.Kill(0)
	end := inspect(t, c.Dir(0))
	for i := range end.Replicas {
		r := &end.Replicas[i]
		if len(r.Voters) != 1 || len(r.Voters[0]) != 1 || r.Voters[0][0].Node != 1 || r.Frozen != 0 {
			t.Errorf("shard %d: voters %v, frozen for %d", r.Shard, r.Voters, r.Frozen)
		}
	}
	for _, n := range end.Meta.Nodes {
		if n.Removed != (n.ID != 1) {
			t.Errorf("in the meta shard: %+v", n)
		}
	}
	if end.Meta.Alloc["replica"] < 1<<20 || end.Meta.Alloc["shard"] < 1<<20 {
		t.Errorf("ids may be given out again: %v", end.Meta.Alloc)
	}
}

// snapshot is all that a directory holds.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var out bytes.Buffer
	if err := state.Dump(node.StatePath(dir), &out, true); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(node.LogPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(node.LogPath(dir) + "/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %d %x\n", e.Name(), len(b), b[:min(len(b), 1<<16)])
	}
	return out.String()
}

// Of two survivors the one with the newer log goes on, not the one with the longer. The entries of the other that are not in it are
// salvaged; its replica is removed. The recovery is cut short at every step and run again, and lost nodes are refused by both.
func TestTwoSurvivors(t *testing.T) {
	fatal := make(chan error, 16)
	c := nodetest.Start(t, 5, nodetest.Options{Config: func(i int, cfg *node.Config) {
		if i > 1 {
			cfg.Fatal = func(err error) { fatal <- err }
		}
	}})
	c.Init(0, 2, 5) // shards 2 and 3
	ctx := deadline(t, 60*time.Second)
	if _, err := c.Node(0).Client().Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	for i := 4; i >= 0; i-- { // node 1 last: what is committed, it has
		c.Kill(i)
	}
	a, b := openDisk(t, c.Dir(0)), openDisk(t, c.Dir(1))
	top := max(a.last[2].Term, b.last[2].Term)
	a.put(2, top+1, []byte("k"), "newer")
	a.put(3, max(a.last[3].Term, b.last[3].Term)+1, []byte("\xf0"), "newer")
	for i := range 3 {
		b.put(2, 0, fmt.Appendf(nil, "cut %d", i), "longer")
	}
	longer, cutTo := b.last[2].Index > a.last[2].Index, b.last[2].Index
	a.close()
	b.close()
	if !longer {
		t.Fatal("the second log is not the longer one")
	}
	dirs := []string{c.Dir(0), c.Dir(1)}
	reports := func() []*recovery.Report { return []*recovery.Report{inspect(t, dirs[0]), inspect(t, dirs[1])} }
	lost := []uint64{3, 4, 5}
	plan, err := recovery.MakePlan(reports(), lost)
	if err != nil {
		t.Fatal(err)
	}
	// The meta shard begins on nodes 1 to 3 and grows to all five by itself: how far it got decides whether it has a quorum.
	asked := func(p *recovery.Plan) []recovery.ShardPlan {
		return slices.DeleteFunc(slices.Clone(p.Shards), func(s recovery.ShardPlan) bool { return s.Shard == uint64(shard.MetaShardID) })
	}
	if len(asked(plan)) != 2 || len(plan.Shards)+plan.Untouched != 3 {
		t.Fatalf("%+v", plan)
	}
	s := asked(plan)[0]
	if s.Shard != 2 || s.Node != 1 || len(s.Others) != 1 || s.Others[0].CutTo != cutTo || cutTo-s.Others[0].CutFrom < 2 {
		t.Fatalf("%+v", s)
	}

	// Cut short after Prepare: the nodes do not start.
	for i, dir := range dirs {
		done, err := recovery.Prepare(dir, plan)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := node.Open(ctx, node.Config{DataDir: dir, Listen: "127.0.0.1:0"}); !errors.Is(err, node.ErrRecovering) {
			t.Errorf("node %d starts: %v", i+1, err)
		}
		if i == 1 {
			checkSalvage(t, done.Salvage, int(cutTo-s.Others[0].CutFrom)+1)
		}
	}
	// Cut short again when one of the two is done. A new plan finds nothing more to do for the shards, and finishes the rest.
	if _, err := recovery.Commit(dirs[0], plan); err != nil {
		t.Fatal(err)
	}
	if again, err := recovery.Commit(dirs[0], plan); err != nil || again.Already != again.Shards {
		t.Fatalf("once more: %+v, %v", again, err)
	}
	rest, err := recovery.MakePlan(reports(), lost)
	if err != nil || len(asked(rest)) != 0 {
		t.Fatalf("%+v, %v", rest, err)
	}
	recoverDirs(t, rest, dirs...)
	if _, err := recovery.MakePlan(reports(), lost); !errors.Is(err, recovery.ErrRefused) || !strings.Contains(err.Error(), "not needed") {
		t.Fatalf("when all is done: %v", err)
	}
	// The first plan's part of the second survivor may come late, too.
	recoverDirs(t, plan, dirs[1])

	c.Restart(0)
	c.Restart(1)
	nodetest.Eventually(t, 20*time.Second, func() error {
		e, err := c.Node(1).Client().Get(deadline(t, 2*time.Second), []byte("k"))
		if err != nil || string(e.Value) != "newer" {
			return fmt.Errorf("%q, %w", e.Value, err)
		}
		return nil
	})
	if _, err := c.Node(1).Client().Get(ctx, []byte("cut 0")); !errors.Is(err, shard.ErrNotFound) {
		t.Errorf("what was cut off is there: %v", err)
	}
	// All three lost nodes together: they had a quorum of every shard.
	for i := 2; i < 5; i++ {
		c.Restart(i)
	}
	for range 3 {
		select {
		case err := <-fatal:
			if !errors.Is(err, node.ErrRefused) || !strings.Contains(err.Error(), "given up by a recovery") {
				t.Errorf("a lost node ends with %v", err)
			}
		case <-ctx.Done():
			t.Fatal("a lost node goes on")
		}
	}
	for i := 2; i < 5; i++ {
		c.Kill(i)
	}
	// The other survivor's replicas were removed, and new ones are made.
	nodetest.Eventually(t, 30*time.Second, func() error {
		for id := engine.ShardID(2); id <= 3; id++ {
			if err := c.Node(0).Client().Refresh(deadline(t, time.Second), a.desc[id].Start); err != nil {
				return err
			}
			r, ok := c.Node(0).Client().Map().Shard(id)
			if !ok {
				return fmt.Errorf("no shard %d", id)
			}
			if on, ok := r.Desc.OnNode(2); !ok || on.Role != shard.RoleVoter || on.Replica == b.keys[id].Replica {
				return fmt.Errorf("%v", r.Desc)
			}
		}
		return nil
	})
	c.Kill(0)
	c.Kill(1)
	end := inspect(t, dirs[1])
	for id := uint64(2); id <= 3; id++ {
		if !slices.Contains(end.Tombstones, recovery.Tombstone{Shard: id, Replica: uint64(b.keys[engine.ShardID(id)].Replica)}) {
			t.Errorf("the replica of shard %d that was given up has no tombstone", id)
		}
	}
}

func checkSalvage(t *testing.T, path string, want int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = recovery.ReadSalvage(bytes.NewReader(b), func(h *recovery.SalvageHeader, e *recovery.SalvagedEntry) error {
		// The last three are the writes that the test has added; in front of them may be what was on its way when the nodes were killed.
		if what := fmt.Sprintf("put cut %d (6 bytes)", n+3-want); n+3 >= want && (e.What() != what || h.Node != 2) {
			t.Errorf("entry %d of node %d is %q, want %q", n, h.Node, e.What(), what)
		}
		n++
		return nil
	})
	if err != nil || n != want {
		t.Fatalf("%d entries, want %d: %v", n, want, err)
	}
	ignore := func(*recovery.SalvageHeader, *recovery.SalvagedEntry) error { return nil }
	if err := recovery.ReadSalvage(bytes.NewReader(b[:len(b)-20]), ignore); err == nil {
		t.Error("a salvage file without its end is read")
	}
	b[len(b)/2] ^= 1
	if err := recovery.ReadSalvage(bytes.NewReader(b), ignore); err == nil {
		t.Error("a salvage file with a changed byte is read")
	}
}
