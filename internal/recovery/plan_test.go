package recovery

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/kiloraft/kiloraft/internal/sysfail"
)

// on makes the report of a node.
func on(node uint64, replicas ...Replica) *Report {
	return &Report{Format: Format, Cluster: "c0ffee00", Node: node, Identity: strings.Repeat("0", 31) + string(rune('a'+node)), Replicas: replicas}
}

// rep makes a replica on a node, with the id 10*shard+node, of a shard on three nodes: its log has one run from 2 on in each of the terms.
func rep(shard, node uint64, last ...Pos) Replica {
	r := Replica{Shard: shard, Replica: 10*shard + node, Applied: Pos{1, 1}, Committed: Pos{1, 1}, Purged: Pos{1, 1}, Last: Pos{1, 1}, Voters: [][]Peer{voters(shard, 1, 2, 3)}}
	for _, p := range last {
		r.Runs = append(r.Runs, Run{p.Term, r.Last.Index + 1, p.Index})
		r.Last = p
	}
	r.Vote.Term = r.Last.Term
	r.Descriptor = Descriptor{Start: Key{byte(shard)}, End: Key{byte(shard + 1)}, Version: 1, ConfVersion: 1}
	if shard == metaShard {
		r.Descriptor.Start, r.Descriptor.End = nil, nil
	}
	return r
}

func voters(shard uint64, nodes ...uint64) (out []Peer) {
	for _, n := range nodes {
		out = append(out, Peer{n, 10*shard + n})
	}
	return out
}

func withMeta(r *Report, shards ...ShardInfo) *Report {
	r.Meta = &Meta{Alloc: map[string]uint64{"shard": 7, "replica": 1 << 21}, Shards: shards}
	return r
}

func mustPlan(t *testing.T, lost []uint64, reports ...*Report) *Plan {
	t.Helper()
	p, err := MakePlan(reports, lost)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlanChoosesTheNewestLog(t *testing.T) {
	five := func(r Replica) Replica {
		r.Voters = [][]Peer{voters(r.Shard, 1, 2, 3, 4, 5)}
		return r
	}
	longer, newer := five(rep(2, 1, Pos{1, 50})), five(rep(2, 2, Pos{1, 20}, Pos{3, 40}))
	longer.Committed = Pos{1, 15}
	newer.Committed, newer.Vote.Term = Pos{3, 30}, 9
	p := mustPlan(t, []uint64{3, 4, 5}, withMeta(on(1, five(rep(1, 1)), longer)), on(2, newer))
	s := p.Shards[1]
	want := Other{Node: 1, Replica: 21, Last: Pos{1, 50}, CutFrom: 21, CutTo: 50}
	if s.Node != 2 || s.Last != (Pos{3, 40}) || s.FirstLost != 41 || s.Undecided != 10 || len(s.Others) != 1 || s.Others[0] != want {
		t.Errorf("%+v", s)
	}
	if s.Term != 9+termJump || s.Term < 1<<20 {
		t.Errorf("term %d is not far above the vote's", s.Term)
	}
	if s.After.ConfVersion != 2 || !reflect.DeepEqual(s.After.Replicas, []Member{{2, 22, "voter"}}) {
		t.Errorf("%+v", s.After)
	}
	if p.Shards[0].Shard != metaShard || len(p.Shards[0].Entries) != 2 {
		t.Errorf("the meta shard is not the first: %+v", p.Shards[0])
	}
	// The plan survives the way through a file, and is the same when it is made again.
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var again Plan
	if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(*p, again) {
		t.Errorf("%v\n%+v\n%+v", err, *p, again)
	}
	if p2 := mustPlan(t, []uint64{5, 4, 3}, on(2, newer), withMeta(on(1, five(rep(1, 1)), longer))); p2.ID != p.ID {
		t.Errorf("made again, the plan is another: %s and %s", p.ID, p2.ID)
	}
}

func TestCutOff(t *testing.T) {
	for _, c := range []struct {
		name           string
		chosen, other  Replica
		committed      uint64
		from, to       uint64
		chosenPurgedTo uint64
	}{
		{"a prefix", rep(2, 1, Pos{1, 10}), rep(2, 2, Pos{1, 7}), 3, 0, 0, 0},
		{"the same", rep(2, 1, Pos{1, 10}), rep(2, 2, Pos{1, 10}), 3, 0, 0, 0},
		{"another end", rep(2, 1, Pos{1, 5}, Pos{2, 10}), rep(2, 2, Pos{1, 9}), 3, 6, 9, 0},
		{"longer and older", rep(2, 1, Pos{1, 5}, Pos{2, 6}), rep(2, 2, Pos{1, 20}), 3, 6, 20, 0},
		{"cannot be compared", rep(2, 1, Pos{2, 10}), rep(2, 2, Pos{1, 7}), 3, 4, 7, 10},
		{"compared behind what was purged", rep(2, 1, Pos{1, 10}), rep(2, 2, Pos{1, 9}), 3, 0, 0, 8},
		{"all committed", rep(2, 1, Pos{1, 10}), rep(2, 2, Pos{1, 7}), 7, 0, 0, 10},
	} {
		c.chosen.Purged.Index, c.other.Committed = max(1, c.chosenPurgedTo), Pos{1, c.committed}
		if got := cutOff(candidate{1, &c.chosen}, candidate{2, &c.other}); got.CutFrom != c.from || got.CutTo != c.to {
			t.Errorf("%s: %d to %d, want %d to %d", c.name, got.CutFrom, got.CutTo, c.from, c.to)
		}
	}
}

func TestPlanKnowsWhoHasAQuorum(t *testing.T) {
	joint := rep(3, 1, Pos{1, 5}) // {1,2,3} and {1,4,5}: the second has none, and the replica on node 2, which does not know of it, is older
	joint.Voters = append(joint.Voters, voters(3, 1, 4, 5))
	learner := rep(4, 1, Pos{1, 5})
	learner.Voters = [][]Peer{voters(4, 3, 4, 5)}
	other := rep(5, 1, Pos{1, 5}) // on node 2 is another replica than the one that votes
	stranger := rep(5, 2, Pos{1, 5})
	stranger.Replica, stranger.Voters = 99, [][]Peer{voters(5, 3, 4, 5)}
	buried := rep(6, 1, Pos{1, 5})
	pair := rep(7, 1, Pos{1, 5}) // half of the voters is no quorum
	pair.Voters = [][]Peer{voters(7, 1, 3)}
	n2 := on(2, rep(1, 2), rep(2, 2), rep(3, 2), stranger)
	n2.Tombstones = []Tombstone{{6, 62}}
	p := mustPlan(t, []uint64{3, 4, 5}, withMeta(on(1, rep(1, 1), rep(2, 1), joint, learner, other, buried, pair)), n2)
	var ids []uint64
	for _, s := range p.Shards {
		ids = append(ids, s.Shard)
	}
	if !reflect.DeepEqual(ids, []uint64{3, 4, 5, 6, 7}) || p.Untouched != 2 {
		t.Errorf("shards %v have lost their quorum, %d have not", ids, p.Untouched)
	}
}

func TestPlanFollowsSplitsAndMerges(t *testing.T) {
	meta := func(node uint64, list ...Replica) *Report {
		for i := range list {
			list[i].Voters = [][]Peer{voters(list[i].Shard, 1, 2, 3, 4, 5)}
		}
		r := rep(1, node)
		r.Voters = [][]Peer{voters(1, 1, 2, 3, 4, 5)}
		return withMeta(on(node, append([]Replica{r}, list...)...))
	}
	born := func(shard, node uint64, committed bool) Replica {
		r := rep(shard, node)
		r.Born = &Birth{Parent: 2, Index: 6, Committed: committed}
		return r
	}
	lost := []uint64{3, 4, 5}
	ids := func(p *Plan) (out []uint64) {
		for _, s := range p.Shards {
			out = append(out, s.Shard)
		}
		return out
	}
	// The split is in the log that goes on: the child is there.
	p := mustPlan(t, lost, meta(1, rep(2, 1, Pos{1, 6}), born(7, 1, false)), meta(2, rep(2, 2, Pos{1, 5})))
	if !reflect.DeepEqual(ids(p), []uint64{1, 2, 7}) {
		t.Errorf("born: %v", ids(p))
	}
	// It is in a log that does not: the child never was.
	p = mustPlan(t, lost, meta(1, rep(2, 1, Pos{1, 6}), born(7, 1, false)), meta(2, rep(2, 2, Pos{1, 5}, Pos{2, 6})))
	if !reflect.DeepEqual(ids(p), []uint64{1, 2}) {
		t.Errorf("not born: %v", ids(p))
	}
	// A merge that is decided in the log that goes on: the right shard is no more.
	left, right := rep(2, 1, Pos{1, 6}), rep(3, 1, Pos{1, 4})
	left.Descriptor.End, left.Descriptor.Version = Key{4}, 3
	right.Absorbed, right.Frozen = 2, 2
	p = mustPlan(t, lost, meta(1, left, right), meta(2, rep(2, 2, Pos{1, 5}), rep(3, 2, Pos{1, 4})))
	if !reflect.DeepEqual(ids(p), []uint64{1, 2}) {
		t.Errorf("absorbed: %v", ids(p))
	}
	// In one that does not: it goes on, and is not frozen any more.
	p = mustPlan(t, lost, meta(1, left, right), meta(2, rep(2, 2, Pos{1, 5}, Pos{2, 6}), rep(3, 2, Pos{1, 3})))
	if !reflect.DeepEqual(ids(p), []uint64{1, 2, 3}) || p.Shards[2].Node != 1 || len(p.Shards[2].Entries) != 2 || p.Shards[2].After.Version != 2 {
		t.Errorf("not absorbed: %v, %+v", ids(p), p.Shards)
	}
}

// A merge was decided, and one survivor has carried it out: there the right shard has a tombstone and the left one its keys. On another survivor,
// which has not heard of it, the right shard is frozen as ever. It must not be made to live again beside the left one.
func TestPlanLeavesTheAbsorbedDead(t *testing.T) {
	wide := func(node uint64, last ...Pos) Replica {
		r := rep(2, node, last...)
		r.Descriptor.End, r.Descriptor.Version = Key{4}, 3
		return r
	}
	prepared := func(node uint64, last ...Pos) Replica {
		r := rep(2, node, last...)
		r.Descriptor.Version = 2
		return r
	}
	right := func(node uint64) Replica {
		r := rep(3, node, Pos{1, 9})
		r.Frozen = 2
		return r
	}
	report := func(node uint64, voters0 []uint64, list ...Replica) *Report {
		m := rep(1, node)
		m.Voters = [][]Peer{voters(1, 1, 4, 5)} // what makes the recovery needed
		for i := range list {
			list[i].Voters = [][]Peer{voters(list[i].Shard, voters0...)}
		}
		return withMeta(on(node, append([]Replica{m}, list...)...))
	}
	buried := func(r *Report) *Report {
		r.Tombstones = []Tombstone{{3, 30 + r.Node}}
		return r
	}
	moved := report(3, []uint64{1, 2, 3}, prepared(3, Pos{1, 5}, Pos{2, 7}), right(3)) // to other nodes, after the merge was given up
	moved.Replicas[2].Frozen, moved.Replicas[2].Voters = 0, [][]Peer{voters(3, 3, 4, 5)}
	three, five := []uint64{1, 2, 3}, []uint64{1, 2, 4, 5, 6}
	for name, c := range map[string]struct {
		reports []*Report
		lost    []uint64
		want    []uint64
	}{
		"the left one has a quorum": {[]*Report{buried(report(1, three, wide(1, Pos{1, 6}))), report(2, three, prepared(2, Pos{1, 5}), right(2))},
			[]uint64{3, 4, 5}, []uint64{1}},
		"the left one is recovered": {[]*Report{buried(report(1, five, wide(1, Pos{1, 6}))), report(2, five, prepared(2, Pos{1, 5}), right(2))},
			[]uint64{4, 5, 6}, []uint64{1, 2}},
		"it was not decided": {[]*Report{report(1, five, wide(1, Pos{1, 6}), right(1)), report(2, five, prepared(2, Pos{1, 5}, Pos{2, 6}), right(2))},
			[]uint64{4, 5, 6}, []uint64{1, 2, 3}},
		"a merge that nobody can win with": {[]*Report{report(1, three, wide(1, Pos{1, 6})), report(2, three, prepared(2, Pos{1, 5}, Pos{2, 7})),
			moved},
			[]uint64{4, 5}, []uint64{1, 3}},
	} {
		var ids []uint64
		for _, s := range mustPlan(t, c.lost, c.reports...).Shards {
			ids = append(ids, s.Shard)
		}
		if !reflect.DeepEqual(ids, c.want) {
			t.Errorf("%s: shards %v, want %v", name, ids, c.want)
		}
	}
}

func TestPlanTellsWhatIsGone(t *testing.T) {
	info := func(id uint64, version uint64, nodes ...uint64) ShardInfo {
		s := ShardInfo{Shard: id, Descriptor: Descriptor{Start: Key{byte(id)}, Version: version}}
		for _, n := range nodes {
			s.Replicas = append(s.Replicas, Member{n, 10*id + n, "voter"})
		}
		return s
	}
	wide := rep(2, 1, Pos{1, 5})
	wide.Descriptor.End, wide.Descriptor.Version, wide.Voters = Key{5}, 4, [][]Peer{voters(2, 1, 4, 5)}
	n2 := on(2)
	n2.Known = []uint64{1, 2, 3, 4, 5}
	p := mustPlan(t, []uint64{3, 4, 5}, withMeta(on(1, rep(1, 1), wide), info(2, 4, 1, 2, 3), info(4, 3, 3, 4, 5), info(8, 1, 3, 4, 5), info(9, 1, 1, 2, 5)), n2)
	if len(p.Gone) != 1 || p.Gone[0].Shard != 8 { // 4 lies in what 2 has absorbed, 9 can be made
		t.Errorf("%+v", p.Gone)
	}
}

func TestPlanRefuses(t *testing.T) {
	good := func() *Report { return withMeta(on(1, rep(1, 1), rep(2, 1, Pos{1, 5}))) }
	with := func(f func(*Report)) *Report {
		r := good()
		f(r)
		return r
	}
	two := on(2, rep(1, 2), rep(2, 2, Pos{1, 5}))
	for name, c := range map[string]struct {
		lost    []uint64
		reports []*Report
		want    string
	}{
		"no report":            {[]uint64{2, 3}, nil, "no survivor"},
		"nobody lost":          {nil, []*Report{good()}, "no lost node"},
		"another format":       {[]uint64{2, 3}, []*Report{with(func(r *Report) { r.Format = 2 })}, "format 2"},
		"two clusters":         {[]uint64{3}, []*Report{good(), {Format: Format, Cluster: "beef", Node: 2}}, "cluster beef"},
		"a node twice":         {[]uint64{2, 3}, []*Report{good(), good()}, "given twice"},
		"a copy":               {[]uint64{2, 3}, []*Report{good(), with(func(r *Report) { r.Identity = "x" })}, "two different directories"},
		"a survivor is lost":   {[]uint64{1, 2, 3}, []*Report{good()}, "as a survivor"},
		"unknown node":         {[]uint64{2, 3, 17}, []*Report{good()}, "ever heard of"},
		"a node is missing":    {[]uint64{2}, []*Report{good()}, "node 3 holds a replica"},
		"it was given up":      {[]uint64{3}, []*Report{with(func(r *Report) { r.Lost = []uint64{2} }), two}, "must not come back"},
		"not needed":           {[]uint64{3}, []*Report{good(), two}, "not needed"},
		"no meta shard":        {[]uint64{2, 3}, []*Report{on(1, rep(2, 1, Pos{1, 5}))}, "the meta shard"},
		"same log, other keys": {[]uint64{3, 4, 5}, contradiction(), "descriptors that differ"},
	} {
		if _, err := MakePlan(c.reports, c.lost); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// contradiction is two survivors of five with the same log of shard 2 that do not agree on its range.
func contradiction() []*Report {
	var list []*Report
	for node := uint64(1); node <= 2; node++ {
		m, r := rep(1, node), rep(2, node, Pos{1, 5})
		m.Voters, r.Voters = [][]Peer{voters(1, 1, 2, 3, 4, 5)}, [][]Peer{voters(2, 1, 2, 3, 4, 5)}
		r.Descriptor.End = Key{byte(8 + node)}
		list = append(list, withMeta(on(node, m, r)))
	}
	return list
}

// What is not durable does not take the place of what was there (FAULTS D20).
func TestUnsyncedFileReplacesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	sysfail.Test(t, syscall.EIO, func() { err = writeDurably(path, []byte("new")) }, sysfail.Fsync)
	b, rerr := os.ReadFile(path)
	if !errors.Is(err, syscall.EIO) || rerr != nil || string(b) != "old" {
		t.Errorf("on a disk that fails: %v; there is %q, %v", err, b, rerr)
	}
}
