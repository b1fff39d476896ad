package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

// A recovery of last resort (package internal/recovery) works on the directories of stopped nodes. What it must know of the facts there,
// and leave in them, is here:
//
//	factRecovering, factLost ─► the raft log is changed ─► factMeta, factRecovering is cleared
//
// Between the first step and the last the node does not start, so that a recovery that was interrupted is finished first. The lost nodes
// are refused by every survivor from its next start on, whether it can read the meta shard or not.

// Offline is what the facts of a stopped node say of its place in a cluster.
type Offline struct {
	Cluster    [16]byte
	Node       engine.NodeID // 0: it belongs to no cluster
	Identity   [16]byte
	Nodes      map[engine.NodeID]string // the nodes that it knows, with their addresses
	Meta       *shard.Descriptor        // the newest descriptor of the meta shard that it has seen; nil if none
	Refused    string                   // why it may not go on, if it may not
	Lost       []engine.NodeID          // nodes that an earlier recovery has given up
	Recovering string                   // the plan of a recovery that was begun and is not finished
}

// FactReader is where the facts of a stopped node are read from: its state, opened for reading.
type FactReader interface {
	NodeGet(key string) ([]byte, error)
}

// ReadOffline reads the facts of a stopped node. Unlike a start it changes none.
func ReadOffline(store FactReader) (Offline, error) {
	f := &facts{store: readOnlyFacts{store}, peers: map[engine.NodeID]peerFact{}}
	var o Offline
	err := f.loadMembership()
	if err == nil {
		err = f.loadHints()
	}
	if err == nil {
		err = f.loadLost()
	}
	if err != nil {
		return o, fmt.Errorf("node: facts: %w", err)
	}
	if f.started != nil {
		o.Cluster, o.Node = f.started.Cluster, f.started.Node
	}
	o.Meta, o.Nodes, o.Lost = f.meta, f.nodeAddrs(), f.lost
	for key, to := range map[string]func([]byte){
		factIdentity:   func(b []byte) { copy(o.Identity[:], b) },
		factRefused:    func(b []byte) { o.Refused = string(b) },
		factRecovering: func(b []byte) { o.Recovering = string(b) },
	} {
		b, err := store.NodeGet(key)
		if err != nil {
			return o, fmt.Errorf("node: facts: %s: %w", key, err)
		}
		to(b)
	}
	return o, nil
}

// readOnlyFacts is a factStore that stores nothing.
type readOnlyFacts struct{ FactReader }

func (readOnlyFacts) NodePut(string, []byte) error {
	return errors.New("node: facts of a stopped node are only read")
}

// BeginRecovery durably notes in the facts of a stopped node that a recovery is under way in its directory, and that these nodes are lost.
func BeginRecovery(store factStore, plan string, lost []engine.NodeID) error {
	f := &facts{store: store}
	if err := f.loadLost(); err != nil {
		return err
	}
	all := append(slices.Clone(f.lost), lost...)
	slices.Sort(all)
	all = slices.Compact(all)
	b := mp.AppendArray(nil, len(all))
	for _, id := range all {
		b = mp.AppendUint(b, uint64(id))
	}
	if err := store.NodePut(factRecovering, []byte(plan)); err != nil {
		return err
	}
	return store.NodePut(factLost, b)
}

// EndRecovery durably notes that the recovery in this directory is done. meta, if not nil, is the meta shard's new descriptor.
func EndRecovery(store factStore, meta *shard.Descriptor) error {
	f := &facts{store: store}
	if err := f.loadHints(); err != nil {
		return err
	}
	if meta != nil {
		if err := f.sawMeta(meta); err != nil {
			return err
		}
	}
	return store.NodePut(factRecovering, nil)
}

func (f *facts) loadLost() error {
	b, err := f.store.NodeGet(factLost)
	if err != nil || len(b) == 0 {
		return err
	}
	r := mp.NewReader(b)
	for n := r.Array(); n > 0 && r.Err() == nil; n-- {
		f.lost = append(f.lost, engine.NodeID(r.Uint()))
	}
	if err := r.Finish(); err != nil {
		return fmt.Errorf("lost nodes: %w", err)
	}
	return nil
}

// isLost tells whether a recovery has given a node up.
func (f *facts) isLost(id engine.NodeID) bool { return slices.Contains(f.lost, id) }

// removeLost marks the nodes that a recovery has given up as removed, in meta and in list.
func (c *core) removeLost(ctx context.Context, list []placement.NodeRecord) error {
	for i := range list {
		rec := &list[i]
		if rec.State == placement.NodeRemoved || !c.n.facts.isLost(rec.ID) {
			continue
		}
		key := placement.NodeKey(rec.ID)
		now, version, err := c.readNode(ctx, rec.ID)
		if err != nil {
			return err
		}
		now.State = placement.NodeRemoved
		err = c.meta.write(ctx, []shard.Condition{{Kind: shard.ConditionVersion, Key: key, Version: version}}, []shard.Op{put(key, now.Append(nil))})
		if isConditionFailed(err) { // another survivor was faster, or somebody changes it: the next sync sees
			continue
		}
		if err != nil {
			return err
		}
		*rec = now
		c.n.log.Info("node", "node", uint64(rec.ID), "state", "removed", "why", "a recovery has given it up")
		c.tellDriver(ctx)
	}
	return nil
}
