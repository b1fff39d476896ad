package node

import (
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

// calmFor is for how many intervals of loadsEvery the balancer draws no new picture of all shards while nothing has changed: what only
// time changes, as that neighbours have been cold for long, may be found so much later.
const calmFor = 6

// calm is what the balancer knew when it last found nothing to do. The zero value: it has found something, or never looked. It belongs
// to the goroutine that drives.
type calm struct {
	until  time.Time
	inputs pictureInputs
}

// pictureInputs tells two pictures apart without drawing them.
type pictureInputs struct {
	cluster uint64 // version of the cluster record
	view    uint64 // see view.changes
	table   uint64 // see loadTable.changes
	living  []engine.NodeID
}

func (d *driver) inputs(cluster uint64) pictureInputs {
	d.c.view.mu.RLock()
	changes := d.c.view.changes
	d.c.view.mu.RUnlock()
	return pictureInputs{cluster: cluster, view: changes, table: d.table.changes, living: d.c.livingNodes()}
}

func (a *pictureInputs) equal(b *pictureInputs) bool {
	return a.cluster == b.cluster && a.view == b.view && a.table == b.table && slices.Equal(a.living, b.living)
}

// holds tells whether a new picture would be the last one again.
func (c *calm) holds(now time.Time, in *pictureInputs) bool {
	return now.Before(c.until) && c.inputs.equal(in)
}

// nothingToDo tells whether a picture shows a cluster at rest: no shard without a leader, busy or under load, no node that is not simply
// up, and nothing planned, stuck or wrong.
func (d *driver) nothingToDo(snap *placement.Snapshot, plan *placement.Plan) bool {
	if len(plan.Moves)+len(plan.Transfers)+len(plan.Stuck) > 0 {
		return false
	}
	for i := range snap.Nodes {
		if n := &snap.Nodes[i]; !n.Lives || n.Leave || n.Young {
			return false
		}
	}
	for i := range snap.Shards {
		if s := &snap.Shards[i]; s.Leader == 0 || s.Busy || s.Fresh || s.Load > 0 && s.ID != shard.MetaShardID { // the balancer itself reads meta
			return false
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.bal.learners) == 0 && d.problems.None()
}
