package node

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/escape"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// What the console (package internal/console) asks for again and again. The answers are made at most once per consoleEvery, however many
// people look, and each is bounded by consoleAsk, so that a node that dies is shown soon even while the meta shard elects.
const (
	consoleEvery = 500 * time.Millisecond
	consoleAsk   = 900 * time.Millisecond
	// consoleFresh is how often all nodes are asked for all they lead; in between for changes only.
	consoleFresh = 5 * time.Second
)

// consoleState is what the console's answers share.
type consoleState struct {
	nodes  shared[[]nodeJSON]
	status shared[*statusJSON]

	mu    sync.Mutex
	table *loadTable // guarded by mu; nil: none yet
	full  time.Time  // guarded by mu: when table was filled anew
}

// shared is an answer that several callers share while it is fresh. Its zero value is ready.
type shared[T any] struct {
	mu sync.Mutex
	at time.Time
	v  T
}

// get returns the answer, made by f if it is older than consoleEvery. Callers at the same time wait for one f.
func (s *shared[T]) get(f func() T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.IsZero() || time.Since(s.at) > consoleEvery {
		s.v, s.at = f(), time.Now()
	}
	return s.v
}

// withLoads calls f with what the nodes tell of their leaders. f must not keep the table.
func (k *consoleState) withLoads(c *core, f func(t *loadTable)) {
	ctx, cancel := context.WithTimeout(c.n.ctx, consoleAsk)
	defer cancel()
	k.mu.Lock()
	defer k.mu.Unlock()
	if age := time.Since(k.full); k.table == nil || age > consoleFresh {
		k.table, k.full = c.gatherLoads(ctx), time.Now()
	} else if c.askLoads(ctx, k.table); c.leaderless(k.table) > 0 && age > consoleEvery {
		k.table, k.full = c.gatherLoads(ctx), time.Now() // new leaders are told sooner to who asks for all
	}
	f(k.table)
}

// leaderless counts the shards of which no living leader is known.
func (c *core) leaderless(t *loadTable) (n int) {
	for _, d := range c.view.all() {
		if c.living(t, d.Shard) == nil {
			n++
		}
	}
	return n
}

// statusJSON is the health of a cluster at a glance: what `kiloraft cluster status -o json` prints, and who says so.
type statusJSON struct {
	*api.Status
	Node    uint64 `json:"node"`
	Version string `json:"version"`
}

// member calls f, or says that the node is in no cluster.
func (n *Node) member(f func(c *core, w http.ResponseWriter, r *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := n.core.Load()
		if c == nil {
			http.Error(w, "in no cluster: run `kiloraft cluster init`", http.StatusServiceUnavailable)
			return
		}
		f(c, w, r)
	}
}

func (n *Node) apiStatus(c *core, w http.ResponseWriter, _ *http.Request) {
	respond(w, n.console.status.get(func() *statusJSON {
		ctx, cancel := context.WithTimeout(n.ctx, consoleAsk)
		defer cancel()
		out := &statusJSON{Node: uint64(c.node), Version: Version()}
		n.console.withLoads(c, func(t *loadTable) { out.Status = c.statusOf(ctx, t) })
		return out
	}))
}

// nodeJSON is a node, and what the console shows besides.
type nodeJSON struct {
	api.NodeView
	Version string `json:"version"`
	Started int64  `json:"started_ms"`         // unix; 0: not known
	Since   int64  `json:"since_ms,omitempty"` // unix: since when a node is not up, if that is known
}

// apiNodes tells the nodes. It does not depend on the meta shard.
func (n *Node) apiNodes(c *core, w http.ResponseWriter, _ *http.Request) {
	respond(w, n.console.nodes.get(func() []nodeJSON {
		ctx, cancel := context.WithTimeout(n.ctx, consoleAsk)
		defer cancel()
		held := map[engine.NodeID]int{}
		for _, d := range c.view.all() {
			for _, r := range d.Replicas {
				held[r.Node]++
			}
		}
		out := []nodeJSON{}
		for _, info := range c.nodesPage(ctx).Nodes {
			j := nodeJSON{NodeView: info.View(), Version: info.Version, Started: info.Started}
			if info.State == api.NodeDown || info.State == api.NodeSuspect {
				j.Replicas = held[info.Node]
				if alive, since := c.driver.nodeSince(info.Node); !alive {
					j.Since = since.UnixMilli()
				}
			}
			out = append(out, j)
		}
		return out
	}))
}

// shardJSON is a shard, and its load.
type shardJSON struct {
	api.ShardView
	Writes float64 `json:"writes_per_s"`
	Reads  float64 `json:"reads_per_s"`
}

func (c *core) shardJSON(t *loadTable, d *shard.Descriptor) shardJSON {
	row := c.living(t, d.Shard)
	if row != nil && row.Descriptor != nil && row.Descriptor.Newer(d) {
		d = row.Descriptor
	}
	out := shardJSON{ShardView: api.ShardView{ID: uint64(d.Shard), Start: escape.String(d.Start), End: escape.String(d.End), Version: d.Version,
		ConfVersion: d.ConfVersion, Replicas: api.ReplicaViews(d)}}
	if row != nil {
		out.Leader, out.Keys, out.Bytes, out.Writes, out.Reads = uint64(row.Node), row.Keys, row.Bytes, row.Writes, row.Reads
	}
	return out
}

// consoleShards is how many shards a page has, and how many it may have: a round trip for 10,000 shards, and some 4 MB at the most.
const (
	consoleShards    = 2048
	consoleShardsMax = 16384
)

// shardsJSON is a page of shards in order of their keys. Next is the start key of the next page, null if this is the last.
type shardsJSON struct {
	Shards []shardJSON `json:"shards"`
	Next   *string     `json:"next"`
}

// apiShards tells a page of the user shards: ?from=KEY&limit=N.
func (n *Node) apiShards(c *core, w http.ResponseWriter, r *http.Request) {
	from, err := escape.Unescape(r.URL.Query().Get("from"))
	if err != nil {
		http.Error(w, "from: "+err.Error(), http.StatusBadRequest)
		return
	}
	limit, err := uintOf(r.URL.Query().Get("limit"), consoleShards)
	if err != nil || limit == 0 || limit > consoleShardsMax {
		http.Error(w, fmt.Sprintf("limit: a number from 1 to %d is wanted", consoleShardsMax), http.StatusBadRequest)
		return
	}
	page := shardsJSON{Shards: []shardJSON{}}
	n.console.withLoads(c, func(t *loadTable) {
		list, next, more := c.view.page(from, int(limit))
		if more {
			text := escape.String(next)
			page.Next = &text
		}
		for _, d := range list {
			page.Shards = append(page.Shards, c.shardJSON(t, d))
		}
	})
	respond(w, &page)
}
