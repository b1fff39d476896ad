package node

import (
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/placement"
)

// TestForgetWhatEndedFirst: a rebalance outlives a thousand of its own moves, and its record must be there when it ends.
func TestForgetWhatEndedFirst(t *testing.T) {
	over := []placement.Op{{ID: 1, EndMS: 10_000}}
	for i := range uint64(opsKeep + opsKeep/4) {
		over = append(over, placement.Op{ID: i + 2, EndMS: int64(i) + 1})
	}
	ids := forgettable(slices.Clone(over))
	if len(ids) != len(over)-opsKeep || slices.Contains(ids, 1) || ids[0] != 2 {
		t.Errorf("forgets %d operations, %v first", len(ids), ids[:min(3, len(ids))])
	}
	if ids := forgettable(over[:opsKeep]); len(ids) != 0 {
		t.Errorf("forgets %v of %d", ids, opsKeep)
	}
}
