package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// uintOf reads a number of a request; none is the default.
func uintOf(text string, none uint64) (uint64, error) {
	if text == "" {
		return none, nil
	}
	return strconv.ParseUint(text, 10, 64)
}

// shardOf finds the shard that a path names, or answers that there is none.
func (c *core) shardOf(w http.ResponseWriter, r *http.Request) *shard.Descriptor {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		http.Error(w, "the id of a shard is a number", http.StatusBadRequest)
		return nil
	}
	d := c.view.find(engine.ShardID(id))
	if d == nil {
		http.Error(w, fmt.Sprintf("shard %d is not known: it may have been merged into its left neighbour", id), http.StatusNotFound)
	}
	return d
}

// shardPageJSON is all about one shard.
type shardPageJSON struct {
	Shard      shardJSON          `json:"shard"`
	Meta       bool               `json:"meta"`
	Replicas   []memberJSON       `json:"replicas"`
	Operations []placement.OpView `json:"operations"` // newest first
	Left       uint64             `json:"left"`       // the neighbours, 0: none
	Right      uint64             `json:"right"`
}

// memberJSON is a replica as its node sees it. What the descriptor names and no node tells has a Problem.
type memberJSON struct {
	api.ReplicaView
	State     string `json:"state"`
	Leader    uint64 `json:"leader"`
	Term      uint64 `json:"term"`
	Last      uint64 `json:"last"`
	Committed uint64 `json:"committed"`
	Applied   uint64 `json:"applied"`
	Persisted uint64 `json:"checkpoint"`
	Keys      uint64 `json:"keys"`
	Bytes     uint64 `json:"bytes"`
	Quiesced  bool   `json:"quiesced"`
	Problem   string `json:"problem,omitempty"`
}

// shardOpsMax bounds the operations on a shard's page.
const shardOpsMax = 20

// apiShard tells all about one shard.
func (n *Node) apiShard(c *core, w http.ResponseWriter, r *http.Request) {
	d := c.shardOf(w, r)
	if d == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), gatherMax)
	defer cancel()
	out := shardPageJSON{Meta: d.Shard == shard.MetaShardID, Operations: []placement.OpView{}}
	n.console.withLoads(c, func(t *loadTable) { out.Shard = c.shardJSON(t, d) })
	out.Replicas = c.members(ctx, d.Shard, out.Shard.Replicas)
	out.Left, out.Right = c.view.neighbours(d)
	_ = c.listOps(ctx, func(o *placement.Op) { // while meta cannot be read the page is of use without
		if o.Kind != placement.OpDrain && o.Kind != placement.OpRebalance && (o.Shard == d.Shard || o.Other == d.Shard) {
			out.Operations = append(out.Operations, o.View(time.Now()))
		}
	})
	slices.Reverse(out.Operations)
	out.Operations = out.Operations[:min(len(out.Operations), shardOpsMax)]
	respond(w, &out)
}

// members asks the nodes for their replicas of a shard.
func (c *core) members(ctx context.Context, id engine.ShardID, named []api.ReplicaView) []memberJSON {
	var out []memberJSON
	for _, g := range c.gather(ctx, []engine.ShardID{id}) {
		for _, s := range g.replicas {
			m := memberJSON{ReplicaView: api.ReplicaView{Node: uint64(g.node), Replica: uint64(s.Replica), Role: "stray"}, State: roleText(s.Role), Leader: uint64(s.Leader), Term: s.Term,
				Last: s.Last, Committed: s.Committed, Applied: s.Applied, Persisted: s.Persisted, Keys: s.Keys, Bytes: s.Bytes, Quiesced: s.Quiesced, Problem: s.Problem}
			i := slices.IndexFunc(named, func(r api.ReplicaView) bool { return r.Node == m.Node && r.Replica == m.Replica })
			if i >= 0 {
				m.Role = named[i].Role
			} else if m.Problem == "" {
				m.Problem = "the descriptor does not name this replica"
			}
			out = append(out, m)
		}
	}
	for _, r := range named {
		if !slices.ContainsFunc(out, func(m memberJSON) bool { return m.Node == r.Node && m.Replica == r.Replica }) {
			why := "the node does not tell of this replica"
			if !c.alive(engine.NodeID(r.Node)) {
				why = "the node is down"
			}
			out = append(out, memberJSON{ReplicaView: r, State: "unknown", Problem: why})
		}
	}
	slices.SortFunc(out, func(a, b memberJSON) int { return int(a.Node) - int(b.Node) })
	return out
}

// neighbours returns the user shards beside one, 0 where there is none.
func (v *view) neighbours(d *shard.Descriptor) (left, right uint64) {
	list := v.byStart()
	i := slices.IndexFunc(list, func(o *shard.Descriptor) bool { return o.Shard == d.Shard })
	if i > 0 {
		left = uint64(list[i-1].Shard)
	}
	if i >= 0 && i+1 < len(list) {
		right = uint64(list[i+1].Shard)
	}
	return left, right
}

// eventJSON is a line of a node's log.
type eventJSON struct {
	Node uint64 `json:"node"`
	Line string `json:"line"`
}

// shardEventsMax bounds the log lines on a shard's page.
const shardEventsMax = 100

// apiShardEvents tells the newest lines of all nodes' logs that name a shard, newest first.
func (n *Node) apiShardEvents(c *core, w http.ResponseWriter, r *http.Request) {
	d := c.shardOf(w, r)
	if d == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), gatherMax)
	defer cancel()
	out := struct {
		Events  []eventJSON `json:"events"`
		Missing []string    `json:"missing"`
	}{Events: []eventJSON{}}
	out.Missing = c.inspectAll(ctx, "log", func(rec *placement.NodeRecord, body []byte) error {
		for line := range bytes.Lines(body) {
			if namesShard(line, d.Shard) {
				out.Events = append(out.Events, eventJSON{uint64(rec.ID), string(bytes.ToValidUTF8(bytes.TrimSpace(line), []byte("?")))})
			}
		}
		return nil
	})
	// Lines begin with their time, in one format, as text or JSON.
	slices.SortStableFunc(out.Events, func(a, b eventJSON) int { return bytes.Compare([]byte(b.Line), []byte(a.Line)) })
	out.Events = out.Events[:min(len(out.Events), shardEventsMax)]
	respond(w, &out)
}

// namesShard tells whether a line of a log, text or JSON, has the attribute shard=ID.
func namesShard(line []byte, id engine.ShardID) bool {
	for _, form := range [...]string{"shard=%d", `"shard":%d`} {
		what := fmt.Appendf(nil, form, id)
		for rest := line; ; {
			i := bytes.Index(rest, what)
			if i < 0 {
				break
			}
			if rest = rest[i+len(what):]; len(rest) == 0 || rest[0] < '0' || rest[0] > '9' {
				return true
			}
		}
	}
	return false
}

// consoleOpsMax is how many operations the console is told, unless it asks for another number.
const consoleOpsMax = 200

// apiOps tells the newest operations, newest first: ?limit=N, and with ?running only those.
func (n *Node) apiOps(c *core, w http.ResponseWriter, r *http.Request) {
	limit, err := uintOf(r.URL.Query().Get("limit"), consoleOpsMax)
	if err != nil || limit == 0 || limit > api.OpsPageMax {
		http.Error(w, "limit: a number from 1 to 1000 is wanted", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), gatherMax)
	defer cancel()
	_, running := r.URL.Query()["running"]
	page, err := c.opsPage(ctx, &api.OpsRequest{Limit: limit, Running: running})
	if err != nil {
		httpError(w, err)
		return
	}
	out := struct {
		Operations []placement.OpView `json:"operations"`
	}{[]placement.OpView{}}
	for _, b := range page.Ops {
		if o, err := placement.DecodeOp(b); err == nil {
			out.Operations = append(out.Operations, o.View(time.Now()))
		}
	}
	respond(w, &out)
}

// decodeJSON reads the body of a request that changes something.
func decodeJSON(w http.ResponseWriter, r *http.Request, into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}
