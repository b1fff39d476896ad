package node

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// A view that has heard of every split and merge shows the shards that live and no other, also where what was absorbed is split off again at the same key (FAULTS R21).
// Those that had begun there came back: nobody led them, and the nodes that had held them were never drained.
func TestViewShowsTheLiving(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		v := newView()
		live := []*shard.Descriptor{{Shard: 2, Version: 1, ConfVersion: 1}}
		next := engine.ShardID(3)
		for range 40 {
			i := rng.IntN(len(live))
			l := *live[i]
			if key := []byte{byte(1 + rng.IntN(8))}; rng.IntN(2) == 0 {
				if !l.Contains(key) || slices.Equal(l.Start, key) {
					continue
				}
				l.Version++
				child := &shard.Descriptor{Shard: next, Start: key, End: l.End, Version: l.Version, ConfVersion: l.ConfVersion}
				next++
				l.End = key
				live = slices.Insert(live, i+1, child)
			} else if i+1 < len(live) {
				l.Version, l.End = max(l.Version, live[i+1].Version)+1, live[i+1].End
				live = slices.Delete(live, i+1, i+2)
			}
			live[i] = &l
			for _, j := range rng.Perm(len(live)) {
				v.learn(live[j])
			}
			same := func(a, b *shard.Descriptor) bool { return a.String() == b.String() }
			if got := v.byStart(); !slices.EqualFunc(got, live, same) {
				t.Fatalf("seed %d: the view shows %v, there are %v", seed, got, live)
			}
		}
	}
}

// What was forgotten does not come back as a leader that is heard of late, and is not found when its descriptor comes late.
func TestViewForgets(t *testing.T) {
	left := &shard.Descriptor{Shard: 2, End: []byte("m"), Version: 1, ConfVersion: 1}
	right := &shard.Descriptor{Shard: 3, Start: []byte("m"), Version: 1, ConfVersion: 1}
	whole := &shard.Descriptor{Shard: 2, Version: 2, ConfVersion: 1}
	v := newView()
	for _, d := range []*shard.Descriptor{left, right, whole} {
		v.learn(d)
		v.setLeader(d.Shard, 1)
	}
	if v.find(3) != nil || v.shard(3) == nil {
		t.Errorf("of what was absorbed and not forgotten yet: found %v, last heard %v", v.find(3), v.shard(3))
	}
	v.forget(3)
	v.setLeader(3, 1)
	if len(v.shards) != 1 {
		t.Errorf("the view keeps %v", v.shards)
	}
	v.learn(right)
	if list := v.byStart(); v.find(3) != nil || v.find(2) != whole || !slices.Equal(list, []*shard.Descriptor{whole}) {
		t.Errorf("a late report brings it back: %v", list)
	}
}
