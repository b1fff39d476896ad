package recovery

import (
	"maps"
	"slices"
)

// check refuses reports that do not fit together.
func (p *planner) check(reports []*Report) error {
	if len(reports) == 0 {
		return refuse("no survivor was given")
	}
	if len(p.lost) == 0 {
		return refuse("no lost node was named")
	}
	known, needed := map[uint64]bool{}, map[uint64]uint64{}
	for _, r := range reports {
		switch other := p.reports[r.Node]; {
		case r.Format != Format:
			return refuse("the report of node %d has format %d, this binary knows %d", r.Node, r.Format, Format)
		case r.Cluster != reports[0].Cluster:
			return refuse("node %d belongs to cluster %s, node %d to cluster %s", r.Node, r.Cluster, reports[0].Node, reports[0].Cluster)
		case other != nil && other.Identity != r.Identity:
			return refuse("two different directories say that they are node %d", r.Node)
		case other != nil:
			return refuse("node %d was given twice", r.Node)
		case p.lost[r.Node]:
			return refuse("node %d is named as lost, but it is given as a survivor", r.Node)
		}
		p.reports[r.Node] = r
		known[r.Node] = true
		for _, id := range append(slices.Clone(r.Known), r.Lost...) {
			known[id] = true
		}
		if r.Meta != nil {
			for _, n := range r.Meta.Nodes {
				known[n.ID] = true
			}
		}
		for i := range r.Replicas {
			rep := &r.Replicas[i]
			if !rep.Uninitialised {
				p.shards[rep.Shard] = append(p.shards[rep.Shard], candidate{r.Node, rep})
			}
			for _, set := range rep.Voters {
				for _, v := range set {
					known[v.Node], needed[v.Node] = true, rep.Shard
				}
			}
		}
	}
	for _, r := range reports {
		if slices.ContainsFunc(r.Lost, func(id uint64) bool { return p.reports[id] != nil }) {
			return refuse("an earlier recovery on node %d has given up nodes %v, one of which is given as a survivor: it must not come back", r.Node, r.Lost)
		}
	}
	for _, id := range sorted(p.lost) {
		if !known[id] {
			return refuse("node %d is named as lost, but no survivor has ever heard of it", id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(needed)) {
		if p.reports[id] == nil && !p.lost[id] {
			return refuse("node %d holds a replica, of shard %d for example, and is neither lost nor given: stop it and give it too, or name it as lost", id, needed[id])
		}
	}
	return nil
}

// unfinished tells whether an earlier recovery has not come to its end on every survivor.
func (p *planner) unfinished() bool {
	done, missing := false, false
	for _, r := range p.reports {
		all := true
		for id := range p.lost {
			all = all && slices.Contains(r.Lost, id)
		}
		done, missing = done || all, missing || !all || r.Recovering != ""
	}
	return done && missing
}
