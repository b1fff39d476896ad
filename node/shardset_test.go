package node

import (
	"math"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
)

func TestShardSet(t *testing.T) {
	s := shardSet{}
	in := []engine.ShardID{0, 1, 63, 64, 1000, math.MaxUint64}
	for i, id := range in {
		if s.has(id) {
			t.Errorf("%d is in it before", id)
		}
		s.add(id)
		for _, id := range in[:i+1] {
			if !s.has(id) {
				t.Errorf("%d is not in it", id)
			}
		}
	}
	for _, id := range []engine.ShardID{2, 62, 65, 128, 999, 1001, math.MaxUint64 - 1} {
		if s.has(id) {
			t.Errorf("%d is in it", id)
		}
	}
}
