package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

// Names of problems.
func nodeDown(id engine.NodeID) string  { return fmt.Sprintf("node/%d/down", id) }
func noLeader(id engine.ShardID) string { return fmt.Sprintf("shard/%d/leader", id) }
func keyHot(id engine.ShardID) string   { return fmt.Sprintf("shard/%d/hot-key", id) }

// tooFew is the name of the problem that shards have too few replicas.
const tooFew = "shards/replicas"

// noticed is since when a node has found problems that are not on record, by their names: what only it sees, or what is too young.
type noticed struct {
	mu sync.Mutex
	at map[string]int64 // unix ms
}

// since fills in since when the problems are there that do not say so, and forgets those that are over.
func (n *noticed) since(now time.Time, recorded map[string]placement.Problem, list []placement.Problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := make(map[string]int64, len(list))
	for i := range list {
		p := &list[i]
		if p.SinceMS != 0 {
			continue
		}
		since, ok := n.at[p.Name]
		if !ok {
			since = now.UnixMilli()
		}
		at[p.Name] = since
		if r, ok := recorded[p.Name]; ok {
			since = min(since, r.SinceMS)
		}
		p.SinceMS = since
	}
	n.at = at
}

// problemPatience is for how many intervals of loadsEvery something must be wrong to be recorded.
const problemPatience = 2

// noteProblems records what is wrong and was not, and deletes what is over.
func (d *driver) noteProblems(ctx context.Context, descs []*shard.Descriptor, replicas int, stuck []string) error {
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
	list := d.findProblems(descs, replicas, stuck)
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
func (d *driver) findProblems(descs []*shard.Descriptor, replicas int, stuck []string) []placement.Problem {
	c := d.c
	var list []placement.Problem
	for _, n := range c.view.nodeList() {
		if n.State != placement.NodeRemoved && !c.alive(n.ID) {
			list = append(list, placement.Problem{Name: nodeDown(n.ID), Text: fmt.Sprintf("node %d (%s, %s) is down", n.ID, n.Name, n.Addr)})
		}
	}
	small := 0
	for _, desc := range descs {
		if len(desc.Replicas) < replicas {
			small++
		}
		if c.living(d.table, desc.Shard) == nil && len(list) < placement.ProblemsMax {
			list = append(list, placement.Problem{Name: noLeader(desc.Shard), Text: fmt.Sprintf("shard %d has no leader", desc.Shard)})
		}
	}
	if small > 0 {
		list = append(list, placement.Problem{Name: tooFew, Text: placement.Count(small, "shard has", "shards have") + " too few replicas"})
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

// withSince is the text of a problem with since when it is there, before what is to be done about it.
func withSince(p placement.Problem, now time.Time) string {
	what, then, more := strings.Cut(p.Text, "; ")
	if !strings.HasSuffix(what, "is down") {
		what += ","
	}
	what += " " + sinceText(time.UnixMilli(p.SinceMS), now)
	if more {
		what += "; " + then
	}
	return what
}

// othersOf returns the recorded problems that only a driver can see: hot keys, and what cannot be placed.
func othersOf(recorded map[string]placement.Problem) (list []placement.Problem) {
	for name, p := range recorded {
		if strings.HasSuffix(name, "/hot-key") || strings.HasPrefix(name, "placement/") {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b placement.Problem) int { return strings.Compare(a.Name, b.Name) })
	return list
}
