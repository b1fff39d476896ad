package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

// Names of problems.
func nodeDown(id engine.NodeID) string  { return fmt.Sprintf("node/%d/down", id) }
func noLeader(id engine.ShardID) string { return fmt.Sprintf("shard/%d/leader", id) }
func keyHot(id engine.ShardID) string   { return fmt.Sprintf("shard/%d/hot-key", id) }

// problemPatience is for how many intervals of loadsEvery something must be wrong to be recorded.
const problemPatience = 2

// noteProblems records what is wrong and was not, and deletes what is over.
func (d *driver) noteProblems(ctx context.Context, descs []*shard.Descriptor, stuck []string) error {
	if d.problems == nil {
		list, err := d.c.readProblems(ctx)
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.problems = placement.NewProblems(list)
		d.mu.Unlock()
	}
	now := time.Now().UnixMilli()
	list := d.findProblems(descs, stuck)
	d.mu.Lock()
	record, over := d.problems.Update(now, problemPatience*d.c.n.cfg.loadsEvery().Milliseconds(), list)
	d.mu.Unlock()
	var ops []shard.Op
	for i := range record {
		ops = append(ops, put(placement.ProblemKey(record[i].Name), record[i].Append(nil)))
	}
	for _, name := range over {
		ops = append(ops, del(placement.ProblemKey(name)))
	}
	if len(ops) == 0 {
		return nil
	}
	if err := d.c.meta.write(ctx, nil, ops); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range record {
		d.problems.Recorded[p.Name] = p
	}
	for _, name := range over {
		delete(d.problems.Recorded, name)
	}
	return nil
}

// findProblems says what is wrong now.
func (d *driver) findProblems(descs []*shard.Descriptor, stuck []string) []placement.Problem {
	c := d.c
	var list []placement.Problem
	for _, n := range c.view.nodeList() {
		if n.State != placement.NodeRemoved && !c.alive(n.ID) {
			list = append(list, placement.Problem{Name: nodeDown(n.ID), Text: fmt.Sprintf("node %d (%s, %s) is down", n.ID, n.Name, n.Addr)})
		}
	}
	for _, desc := range descs {
		if c.living(d.table, desc.Shard) == nil && len(list) < placement.ProblemsMax {
			list = append(list, placement.Problem{Name: noLeader(desc.Shard), Text: fmt.Sprintf("shard %d has no leader", desc.Shard)})
		}
	}
	d.mu.Lock()
	for id, h := range d.shape.hot {
		list = append(list, placement.Problem{Name: keyHot(id), Text: fmt.Sprintf(
			"shard %d is hot: key %q takes %.0f %% of its requests (about %.0f per second), which no split can help", id, h.key, 100*h.share, h.load)})
	}
	d.mu.Unlock()
	for i, text := range stuck {
		list = append(list, placement.Problem{Name: fmt.Sprintf("placement/%d", i), Text: text})
	}
	return list
}

// downSince is since when a node is known to be down, by the record of an earlier driver too.
func (d *driver) downSince(id engine.NodeID, since time.Time) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.problems == nil {
		return since
	}
	if p, ok := d.problems.Recorded[nodeDown(id)]; ok && time.UnixMilli(p.SinceMS).Before(since) {
		return time.UnixMilli(p.SinceMS)
	}
	return since
}

// readProblems reads what is recorded.
func (c *core) readProblems(ctx context.Context) (list []placement.Problem, err error) {
	err = c.meta.scan(ctx, []byte(placement.PrefixProblem), placement.PrefixEnd(placement.PrefixProblem), func(_, value []byte) error {
		p, err := placement.DecodeProblem(value)
		list = append(list, p)
		return err
	})
	return list, err
}

// sinceText says since when, as people read it.
func sinceText(since, now time.Time) string {
	return fmt.Sprintf("since %s (%s)", since.UTC().Format(time.RFC3339), now.Sub(since).Round(time.Second))
}

// othersOf returns the recorded problems that only a driver can see: hot keys, and what cannot be placed.
func othersOf(recorded map[string]placement.Problem, now time.Time) (list []string) {
	for name, p := range recorded {
		if strings.HasSuffix(name, "/hot-key") || strings.HasPrefix(name, "placement/") {
			list = append(list, p.Text+", "+sinceText(time.UnixMilli(p.SinceMS), now))
		}
	}
	return list
}
