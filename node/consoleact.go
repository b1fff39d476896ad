package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/escape"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// httpError answers with the status that an error means.
func httpError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, shard.ErrInvalid), errors.Is(err, shard.ErrTooLarge):
		status = http.StatusBadRequest
	case errors.Is(err, shard.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, shard.ErrDenied):
		status = http.StatusForbidden
	case errors.Is(err, shard.ErrUnavailable), errors.Is(err, shard.ErrOverloaded), errors.Is(err, context.DeadlineExceeded):
		status = http.StatusServiceUnavailable
	}
	http.Error(w, err.Error(), status)
}

// actMax bounds an action of the console: to start an operation, not to see its end.
const actMax = 10 * time.Second

// action is a change that somebody asks for in a browser. do returns what it is called in the audit log, even if it fails. Unlike the command
// line of a machine, a browser is at the mercy of other sites (they can be made to look like this one), so an action takes somebody
// who has shown who they are: on a cluster without certificates there is none.
func (n *Node) action(do func(c *core, ctx context.Context, w http.ResponseWriter, r *http.Request) (name string, answer any, err error)) http.HandlerFunc {
	return n.member(func(c *core, w http.ResponseWriter, r *http.Request) {
		id := whoAsks(r)
		if id.How == auth.ByNothing {
			http.Error(w, "the console changes nothing for somebody who is not authenticated: use the command line, or give the nodes certificates (docs/security.md)",
				http.StatusForbidden)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), actMax)
		defer cancel()
		name, answer, err := do(c, ctx, w, r)
		n.sec.record(id, r.RemoteAddr, "http", name, err)
		if err != nil {
			httpError(w, err)
			return
		}
		respond(w, answer)
	})
}

// opRequestJSON says what operation is wanted. Which fields count depends on the kind.
type opRequestJSON struct {
	Kind  string   `json:"kind"` // move, transfer, drain, rebalance, split, merge
	Shard uint64   `json:"shard"`
	Other uint64   `json:"other"` // merge: the right one
	From  uint64   `json:"from"`
	To    uint64   `json:"to"`
	Keys  []string `json:"keys"` // split: unprintable bytes as \xNN
	Parts uint64   `json:"parts"`
	By    []string `json:"by"` // rebalance
}

// op makes the operation.
func (q *opRequestJSON) op() (*placement.Op, error) {
	o := &placement.Op{Shard: engine.ShardID(q.Shard), Other: engine.ShardID(q.Other), From: engine.NodeID(q.From), To: engine.NodeID(q.To), Parts: q.Parts, By: q.By}
	for _, k := range placement.OpKinds() {
		if k.String() == q.Kind {
			o.Kind = k
		}
	}
	if o.Kind == 0 {
		return nil, &shard.InvalidError{What: fmt.Sprintf("operation %q: want move, transfer, drain, rebalance, split or merge", q.Kind)}
	}
	if len(q.Keys) > placement.OpKeysMax || len(q.By) > 16 {
		return nil, &shard.InvalidError{What: "too many keys"}
	}
	for _, text := range q.Keys {
		key, err := escape.Unescape(text)
		if err != nil {
			return nil, &shard.InvalidError{What: err.Error()}
		}
		o.Keys = append(o.Keys, key)
	}
	return o, nil
}

// actOp starts an operation.
func (c *core) actOp(ctx context.Context, w http.ResponseWriter, r *http.Request) (string, any, error) {
	var q opRequestJSON
	if err := decodeJSON(w, r, &q); err != nil {
		return "start an operation", nil, &shard.InvalidError{What: "a JSON object that names an operation is wanted: " + err.Error()}
	}
	o, err := q.op()
	if err != nil {
		return "start an operation", nil, err
	}
	err = c.startOp(ctx, o)
	return o.String(), o.View(time.Now()), err
}

// actCancel asks an operation to stop.
func (c *core) actCancel(ctx context.Context, _ http.ResponseWriter, r *http.Request) (string, any, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		return "cancel an operation", nil, &shard.InvalidError{What: "the id of an operation is a number"}
	}
	o, err := c.cancelOp(ctx, id)
	if err != nil {
		return fmt.Sprintf("cancel operation %d", id), nil, err
	}
	return fmt.Sprintf("cancel operation %d", id), o.View(time.Now()), nil
}

// actUndrain lets a node take replicas again.
func (c *core) actUndrain(ctx context.Context, _ http.ResponseWriter, r *http.Request) (string, any, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		return "undrain a node", nil, &shard.InvalidError{What: "the id of a node is a number"}
	}
	q := &api.NodeSetRequest{Node: engine.NodeID(id), Action: api.NodeUndrain}
	return describeNodeSet(q), struct{}{}, c.setNode(ctx, q)
}
