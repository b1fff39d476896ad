package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/kiloraft/kiloraft/placement"
)

// gatherMax bounds the question to all nodes.
const gatherMax = 3 * time.Second

// apiHeat answers with the heat map of the cluster, or with ?local of this node, as a HeatMap.
func (n *Node) apiHeat(w http.ResponseWriter, r *http.Request) {
	c := n.core.Load()
	if c == nil {
		http.Error(w, "in no cluster", http.StatusServiceUnavailable)
		return
	}
	if _, local := r.URL.Query()["local"]; local {
		respond(w, newHeatMap([][]heatSlotOf{n.heat.recall()}))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), gatherMax)
	defer cancel()
	var nodes [][]heatSlotOf
	missing := c.inspectAll(ctx, "heat", func(_ *placement.NodeRecord, body []byte) error {
		var slots []heatSlotOf
		if err := json.Unmarshal(body, &slots); err != nil {
			return err
		}
		nodes = append(nodes, slots)
		return nil
	})
	m := newHeatMap(nodes)
	m.Missing = missing
	respond(w, m)
}

// History is an hour of figures of the nodes of a cluster.
type History struct {
	StepSeconds int           `json:"step_seconds"`
	Nodes       []NodeHistory `json:"nodes"`
	Missing     []string      `json:"missing"` // nodes that did not answer
}

// NodeHistory is that of one node, oldest sample first.
type NodeHistory struct {
	Node    uint64   `json:"node"`
	Name    string   `json:"name"`
	Samples []Sample `json:"samples"`
}

// apiHistory answers with the figures of all nodes, or with ?local of this one, as a History.
func (n *Node) apiHistory(w http.ResponseWriter, r *http.Request) {
	h := History{StepSeconds: int(historyStep / time.Second), Nodes: []NodeHistory{}, Missing: []string{}}
	c := n.core.Load()
	if _, local := r.URL.Query()["local"]; local || c == nil {
		h.Nodes = append(h.Nodes, NodeHistory{uint64(n.ID()), n.name, n.history.recall()})
		respond(w, h)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), gatherMax)
	defer cancel()
	h.Missing = c.inspectAll(ctx, "history", func(rec *placement.NodeRecord, body []byte) error {
		one := NodeHistory{Node: uint64(rec.ID), Name: rec.Name}
		if err := json.Unmarshal(body, &one.Samples); err != nil {
			return err
		}
		h.Nodes = append(h.Nodes, one)
		return nil
	})
	respond(w, h)
}

func respond(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v)
}

// readLog answers with the last lines of the log.
func (n *Node) readLog(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_ = n.writeLog(w)
}

// setLogLevel changes the level of the log: PUT /debug/log?level=debug.
func (n *Node) setLogLevel(w http.ResponseWriter, r *http.Request) {
	text := r.URL.Query().Get("level")
	var level slog.Level
	if err := level.UnmarshalText([]byte(text)); err != nil || text == "" {
		http.Error(w, fmt.Sprintf("level %q: want debug, info, warn or error", text), http.StatusBadRequest)
		return
	}
	if n.cfg.Logs == nil {
		http.Error(w, "this node has a logger of its own", http.StatusNotImplemented)
		return
	}
	n.cfg.Logs.SetLevel(level)
	n.sec.record(whoAsks(r), r.RemoteAddr, "http", "set the log level to "+strings.ToLower(level.String()), nil)
	n.log.Info("log level changed", "level", strings.ToLower(level.String()))
	_, _ = fmt.Fprintf(w, "%s\n", strings.ToLower(level.String()))
}
