package cli

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// problemsMax bounds the shards that a status names; the rest are counted.
const problemsMax = 20

// Status implements client.Cluster. It is the view of the node that answers.
func (r *remote) Status(ctx context.Context) (client.Status, error) {
	var st client.Status
	nodes, err := r.nodes(ctx)
	if err != nil {
		return st, err
	}
	shards, err := r.Shards(ctx, 0)
	if err != nil {
		return st, err
	}
	var meta api.ShardsPage
	if err := r.ask(ctx, api.MethodShards, &api.ShardsRequest{Shards: []engine.ShardID{shard.MetaShardID}, Meta: true}, &meta); err != nil {
		return st, err
	}
	st.Problems = []string{}
	alive := map[uint64]bool{}
	for _, n := range nodes.Nodes {
		st.ClusterID = hex.EncodeToString(n.ClusterID[:])
		if n.State == api.NodeRemoved {
			continue
		}
		st.Nodes.Total++
		if n.State == api.NodeUp || n.State == api.NodeDraining {
			st.Nodes.Up++
			alive[uint64(n.Node)] = true
		} else {
			st.Problems = append(st.Problems, fmt.Sprintf("node %d (%s, %s) is %s", n.Node, n.Name, n.Addr, n.State))
		}
	}
	for i := range meta.Shards {
		if s := toShard(&meta.Shards[i]); s.ID == uint64(shard.MetaShardID) && !available(s, alive) {
			st.Problems = append(st.Problems, "the meta shard is unavailable: shards and nodes cannot be changed")
		}
	}
	var said api.Status
	err = r.ask(ctx, api.MethodStatus, nil, &said)
	countShards(&st, shards, alive, int(said.Replicas))
	if err == nil { // in more words, and since when
		st.Operations.Running = int(said.Running)
		st.Problems = append([]string{}, said.Problems...)
		if st.Shards.Unavailable > 0 && len(st.Problems) == 0 {
			st.Problems = append(st.Problems, placement.Count(st.Shards.Unavailable, "shard is", "shards are")+" unavailable")
		}
	}
	return st, nil
}

// live counts the replicas and the voters of a shard that are on nodes that are alive.
func live(s client.Shard, alive map[uint64]bool) (replicas, voters, votersAll int) {
	for _, rep := range s.Replicas {
		voter := rep.Role == "voter"
		if voter {
			votersAll++
		}
		if alive[rep.Node] {
			replicas++
			if voter {
				voters++
			}
		}
	}
	return replicas, voters, votersAll
}

// available tells whether a shard has a leader and a quorum.
func available(s client.Shard, alive map[uint64]bool) bool {
	_, voters, all := live(s, alive)
	return alive[s.Leader] && 2*voters > all
}

// countShards counts the user shards. want is how many replicas each should have, 0 if that is not known.
func countShards(st *client.Status, shards []client.Shard, alive map[uint64]bool, want int) {
	st.Shards.Total = len(shards)
	for _, s := range shards {
		st.Replicas += len(s.Replicas)
		if alive[s.Leader] {
			st.Shards.WithLeader++
		}
		replicas, _, _ := live(s, alive)
		if replicas < max(len(s.Replicas), want) {
			st.Shards.UnderReplicated++
		}
		if available(s, alive) {
			continue
		}
		if st.Shards.Unavailable++; st.Shards.Unavailable <= problemsMax {
			st.Problems = append(st.Problems, fmt.Sprintf("shard %d is unavailable: leader %d, %d of %d replicas live", s.ID, s.Leader, replicas, len(s.Replicas)))
		}
	}
	if n := st.Shards.Unavailable - problemsMax; n > 0 {
		st.Problems = append(st.Problems, placement.Count(n, "more shard is", "more shards are")+" unavailable")
	}
	if st.Shards.UnderReplicated > 0 {
		st.Problems = append(st.Problems, placement.Count(st.Shards.UnderReplicated, "shard has", "shards have")+" too few live replicas")
	}
}
