package placement

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
)

func nodes(n int) []engine.NodeID {
	ids := make([]engine.NodeID, n)
	for i := range ids {
		ids[i] = engine.NodeID(10 + 3*i)
	}
	return ids
}

func spread(counts map[engine.NodeID]int, nodes []engine.NodeID) int {
	lo, hi := counts[nodes[0]], counts[nodes[0]]
	for _, n := range nodes {
		lo, hi = min(lo, counts[n]), max(hi, counts[n])
	}
	return hi - lo
}

func TestPlanInitialIsEven(t *testing.T) {
	for n := 1; n <= 9; n++ {
		for r := 1; r <= min(n, 5); r++ {
			for _, shards := range []int{1, 2, 3, 5, 7, 10, 13, 50, 64, 99, 100, 101, 997, 1000} {
				in := Initial{Nodes: nodes(n), Shards: shards, Replicas: r, FirstShard: 2, FirstReplica: 4}
				plan, err := PlanInitial(in)
				if err != nil {
					t.Fatal(err)
				}
				checkPlan(t, in, plan)
			}
		}
	}
}

func checkPlan(t *testing.T, in Initial, plan []InitialShard) {
	t.Helper()
	if len(plan) != in.Shards {
		t.Fatalf("%d shards, want %d", len(plan), in.Shards)
	}
	leaders, replicas, ids := map[engine.NodeID]int{}, map[engine.NodeID]int{}, map[engine.ReplicaID]bool{}
	var end []byte
	for i, s := range plan {
		if s.ID != in.FirstShard+engine.ShardID(i) || !bytes.Equal(s.Start, end) || len(s.Replicas) != in.Replicas {
			t.Fatalf("%+v: shard %d is %+v after end %x", in, i, s, end)
		}
		if i < len(plan)-1 && bytes.Compare(s.Start, s.End) >= 0 {
			t.Fatalf("%+v: shard %d has an empty range %x to %x", in, i, s.Start, s.End)
		}
		end = s.End
		here := map[engine.NodeID]bool{}
		leaders[s.Replicas[0].Node]++
		for _, r := range s.Replicas {
			replicas[r.Node]++
			if here[r.Node] || ids[r.Replica] {
				t.Fatalf("%+v: shard %d has a node or replica id twice: %+v", in, i, s)
			}
			here[r.Node], ids[r.Replica] = true, true
		}
	}
	if len(end) != 0 {
		t.Fatalf("the last shard ends at %x", end)
	}
	if d := spread(leaders, in.Nodes); d > 1 {
		t.Errorf("%d nodes, %d shards of %d: leaders differ by %d", len(in.Nodes), in.Shards, in.Replicas, d)
	}
	if d := spread(replicas, in.Nodes); d > 1 {
		t.Errorf("%d nodes, %d shards of %d: replicas differ by %d", len(in.Nodes), in.Shards, in.Replicas, d)
	}
}

// When a node dies, the followers that take over its shards should sit on all other nodes.
func TestPlanInitialScattersFollowers(t *testing.T) {
	in := Initial{Nodes: nodes(7), Shards: 1000, Replicas: 3, FirstShard: 2, FirstReplica: 1}
	plan, err := PlanInitial(in)
	if err != nil {
		t.Fatal(err)
	}
	pairs := map[[2]engine.NodeID]int{}
	for _, s := range plan {
		for _, r := range s.Replicas[1:] {
			pairs[[2]engine.NodeID{s.Replicas[0].Node, r.Node}]++
		}
	}
	if len(pairs) != 7*6 {
		t.Fatalf("leaders and followers form %d pairs of nodes, want all 42", len(pairs))
	}
	for p, n := range pairs {
		if n < 30 || n > 66 { // 1000*2/42 = 48
			t.Errorf("pair %v has %d shards", p, n)
		}
	}
}

func TestPlanInitialIsAFunction(t *testing.T) {
	in := Initial{Nodes: nodes(5), Shards: 77, Replicas: 3, FirstShard: 2, FirstReplica: 4}
	a, _ := PlanInitial(in)
	b, _ := PlanInitial(in)
	if !reflect.DeepEqual(a, b) {
		t.Fatal("two plans of the same arguments differ")
	}
}

func TestPlanInitialRefuses(t *testing.T) {
	for _, c := range []struct {
		in   Initial
		want error
	}{
		{Initial{Nodes: nodes(2), Shards: 1, Replicas: 3}, ErrTooFewNodes},
		{Initial{Nodes: nodes(3), Shards: 0, Replicas: 3}, ErrBadPlan},
		{Initial{Nodes: nodes(3), Shards: ShardsMax + 1, Replicas: 3}, ErrBadPlan},
		{Initial{Nodes: nodes(3), Shards: 1, Replicas: 0}, ErrBadPlan},
		{Initial{Nodes: []engine.NodeID{1, 1}, Shards: 1, Replicas: 1}, ErrBadPlan},
	} {
		if _, err := PlanInitial(c.in); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.in, err, c.want)
		}
	}
}

func TestSplitKeys(t *testing.T) {
	for _, n := range []int{1, 2, 3, 16, 17, 256, 257, 1000, 4096, 4097, 10_000, ShardsMax} {
		keys := SplitKeys(n)
		if len(keys) != n-1 {
			t.Fatalf("%d: %d keys", n, len(keys))
		}
		for i, k := range keys {
			if len(k) == 0 || i > 0 && bytes.Compare(keys[i-1], k) >= 0 {
				t.Fatalf("%d: key %d is %x", n, i, k)
			}
		}
	}
	if k := SplitKeys(4); string(k[1]) != "\x80" {
		t.Errorf("the middle of 4 is %x", k[1])
	}
}
