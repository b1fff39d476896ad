package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// Methods by which the driver of operations works with other nodes. Sent: never renumber.
const (
	methodLeads    api.Method = 72 // array of shards → leadInfos: those that this node leads, confirmed
	methodChange   api.Method = 73 // membershipChange → empty; to the leader
	methodRemove   api.Method = 74 // removeRequest → empty: destroy a replica that was removed
	methodEvacuate api.Method = 75 // array of nodes to avoid → array with the number of shards still led: hand over all leaderships
	methodLearn    api.Method = 76 // [node, descriptors] → empty: what its leaders have applied
)

// servePeer serves the methods of this file.
func (c *core) servePeer(ctx context.Context, q *incoming) ([]byte, error) {
	switch q.method {
	case methodLeads:
		ids, err := decodeIDs[engine.ShardID](q.body)
		if err != nil {
			return nil, err
		}
		list, err := c.sched.LeadsOf(ctx, ids...)
		if err != nil {
			return nil, err
		}
		return appendLeads(nil, list), nil
	case methodChange:
		ch, err := decodeChange(q.body)
		if err != nil {
			return nil, err
		}
		return nil, c.sched.ChangeMembership(ctx, ch)
	case methodRemove:
		return nil, c.serveRemove(ctx, q.body)
	case methodEvacuate:
		avoid, err := decodeIDs[engine.NodeID](q.body)
		if err != nil {
			return nil, err
		}
		left, err := c.evacuate(ctx, avoid)
		return mp.AppendUint(mp.AppendArray(nil, 1), uint64(left)), err
	case methodSplit:
		return nil, c.serveSplit(ctx, q.body)
	case methodMerge:
		return nil, c.serveMerge(ctx, q.body)
	case methodLoads:
		return c.serveLoads(ctx, q.body)
	case methodSamples:
		return c.serveSamples(ctx, q.body)
	case methodRates:
		return c.serveRates(ctx, q.body)
	case methodSample:
		return c.serveSample(ctx, q.body)
	case methodLearn:
		return nil, c.serveLearn(ctx, q.body)
	}
	return nil, errNoMethod(q.method)
}

func appendIDs[T ~uint64](b []byte, ids []T) []byte {
	b = mp.AppendArray(b, len(ids))
	for _, id := range ids {
		b = mp.AppendUint(b, uint64(id))
	}
	return b
}

func decodeIDs[T ~uint64](b []byte) ([]T, error) {
	r := mp.NewReader(b)
	n := r.Array()
	if n > api.ListOfShardsMax {
		r.Fail("too many ids")
	}
	var ids []T
	for ; n > 0 && r.Err() == nil; n-- {
		ids = append(ids, T(r.Uint()))
	}
	if err := r.Finish(); err != nil {
		return nil, malformed(err)
	}
	return ids, nil
}

// lead is a scheduler.Lead as another node tells it.
type lead struct {
	scheduler.Lead
	Node engine.NodeID
}

// noteMax bounds the bytes of a note.
const noteMax = 300

func appendLeads(b []byte, list []scheduler.Lead) []byte {
	b = mp.AppendArray(b, len(list))
	for i := range list {
		l := &list[i]
		b = mp.AppendArray(b, 13)
		b = shard.AppendDescriptor(b, l.Descriptor)
		for _, v := range [...]uint64{uint64(l.Replica), l.Term, l.Committed, l.Keys, l.Bytes, l.Writes} {
			b = mp.AppendUint(b, v)
		}
		b = mp.AppendBool(b, l.Changing)
		b = mp.AppendArray(b, 4*len(l.Progress))
		for _, p := range l.Progress {
			b = mp.AppendUint(mp.AppendUint(b, uint64(p.Peer.Node)), uint64(p.Peer.Replica))
			b = mp.AppendUint(mp.AppendUint(b, p.Match.Index), uint64(p.State))
		}
		b = mp.AppendString(mp.AppendUint(b, l.SnapshotSent), l.SnapshotNote[:min(len(l.SnapshotNote), noteMax)])
		b = mp.AppendUint(mp.AppendUint(b, l.MemberAt.Term), l.MemberAt.Index)
	}
	return b
}

func decodeLeads(node engine.NodeID, b []byte) ([]lead, error) {
	r := mp.NewReader(b)
	var list []lead
	for n := r.Array(); n > 0 && r.Err() == nil; n-- {
		l := lead{Node: node}
		more := r.ArrayMin(9)
		d := shard.ReadDescriptor(&r)
		l.Descriptor = &d
		l.Replica = engine.ReplicaID(r.Uint())
		for _, v := range [...]*uint64{&l.Term, &l.Committed, &l.Keys, &l.Bytes, &l.Writes} {
			*v = r.Uint()
		}
		l.Changing = r.Bool()
		k := r.Array()
		if k%4 != 0 || k > 4*64 {
			r.Fail("progress")
		}
		for ; k > 0 && r.Err() == nil; k -= 4 {
			p := engine.Progress{Peer: engine.Peer{Node: engine.NodeID(r.Uint()), Replica: engine.ReplicaID(r.Uint())}}
			p.Match.Index, p.State = r.Uint(), engine.ProgressState(r.Uint())
			l.Progress = append(l.Progress, p)
		}
		if more >= 2 {
			l.SnapshotSent = r.Uint()
			note := r.Bin()
			l.SnapshotNote = string(note[:min(len(note), noteMax)])
			more -= 2
		}
		if more >= 2 {
			l.MemberAt = engine.LogID{Term: r.Uint(), Index: r.Uint()}
			more -= 2
		}
		r.Skip(more)
		list = append(list, l)
	}
	if err := r.Finish(); err != nil {
		return nil, malformed(err)
	}
	return list, nil
}

func appendChange(b []byte, ch *scheduler.MembershipChange) []byte {
	d := shard.Descriptor{Shard: ch.Shard, Version: ch.Version, ConfVersion: ch.ConfVersion, Replicas: ch.Replicas}
	return shard.AppendDescriptor(b, &d)
}

func decodeChange(b []byte) (scheduler.MembershipChange, error) {
	d, err := shard.DecodeDescriptor(b)
	if err != nil {
		return scheduler.MembershipChange{}, malformed(err)
	}
	return scheduler.MembershipChange{Shard: d.Shard, Version: d.Version, ConfVersion: d.ConfVersion, Replicas: d.Replicas}, nil
}

// removeRequest asks for the end of a replica. The descriptor, which a leader has applied, is the proof for one that has applied something;
// for one that was not a member yet as far as it knows it is the driver's word that it added the replica, and has seen it removed.
type removeRequest struct {
	Descriptor shard.Descriptor
	Replica    engine.ReplicaID
	// At is the entry of the membership that the descriptor shows; zero from an older version. A replica whose log, as far as it is not applied,
	// names it as a voter may have acknowledged what others count on: it goes only if At is behind that.
	At engine.LogID
}

// removal is the request to end a replica that is not a member any more, as its shard's leader says.
func (l *lead) removal(replica engine.ReplicaID) []byte {
	q := removeRequest{Descriptor: *l.Descriptor, Replica: replica, At: l.MemberAt}
	return q.append(nil)
}

func (q *removeRequest) append(b []byte) []byte {
	b = mp.AppendUint(shard.AppendDescriptor(mp.AppendArray(b, 4), &q.Descriptor), uint64(q.Replica))
	return mp.AppendUint(mp.AppendUint(b, q.At.Term), q.At.Index)
}

// mayGo tells whether a replica may be destroyed on the driver's word: it has never been a member as far as it has applied, and nobody can have counted on
// what it has acknowledged, or the membership without it is behind the one that its log has.
func (q *removeRequest) mayGo(st *scheduler.ReplicaStatus) bool {
	if st.Descriptor == nil {
		return !st.Orphan // that one is judged by the descriptor
	}
	return !st.WasMember && (!st.Votes || st.MemberAt.Less(q.At))
}

func (c *core) serveRemove(ctx context.Context, body []byte) error {
	r := mp.NewReader(body)
	more := r.ArrayMin(2)
	q := removeRequest{Descriptor: shard.ReadDescriptor(&r), Replica: engine.ReplicaID(r.Uint())}
	if more >= 2 {
		q.At = engine.LogID{Term: r.Uint(), Index: r.Uint()}
		more -= 2
	}
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return malformed(err)
	}
	d, replica := q.Descriptor, q.Replica
	if _, named := d.Replica(replica); named || d.Shard == 0 {
		return &shard.InvalidError{What: fmt.Sprintf("replica %d of shard %d is a member", replica, d.Shard)}
	}
	st, err := c.sched.Status(ctx, d.Shard)
	switch {
	case errors.Is(err, shard.ErrShardNotFound):
		return nil
	case err != nil:
		return err
	case st.Replica != replica:
		return nil
	case q.mayGo(&st):
		return c.sched.RemoveReplica(ctx, d.Shard, replica, &d)
	}
	if err := c.removeGone(ctx, &d); err != nil {
		return err
	}
	if st, err := c.sched.Status(ctx, d.Shard); err == nil && st.Replica == replica {
		return &shard.UnavailableError{Reason: fmt.Sprintf("replica %d has applied a later membership than the proof", replica)}
	}
	return nil
}

// evacuate hands all leaderships over and returns when none is left that somebody else could take, or ctx ends.
func (c *core) evacuate(ctx context.Context, avoid []engine.NodeID) (int, error) {
	for {
		left, err := c.sched.Evacuate(ctx, avoid)
		if err != nil || left == 0 {
			return left, err
		}
		if sleep(ctx, 20*time.Millisecond) != nil {
			return left, nil
		}
	}
}

// askLeads asks a node what it leads: of the named shards, or all.
func (c *core) askLeads(ctx context.Context, node engine.NodeID, shards ...engine.ShardID) ([]lead, error) {
	body, err := c.n.call(ctx, node, methodLeads, 0, appendIDs(nil, shards))
	if err != nil {
		return nil, err
	}
	return decodeLeads(node, body)
}

// find returns a shard that lives as far as is known here. Of one that does not meta may know which shard absorbed it, and the error says so.
func (c *core) find(ctx context.Context, id engine.ShardID) (*shard.Descriptor, error) {
	if d := c.view.find(id); d != nil {
		return d, nil
	}
	grave, version, err := c.meta.get(ctx, placement.DeadKey(id))
	switch {
	case err != nil:
		return nil, fmt.Errorf("shard %d is not known here, and whether it was merged away could not be asked: %w", id, err)
	case version == 0:
		return nil, fmt.Errorf("shard %d: %w", id, shard.ErrNotFound)
	}
	absorber, _, err := placement.DecodeDead(grave)
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("shard %d, which was merged into shard %d: %w", id, absorber, shard.ErrNotFound)
}

// findLead returns what the leader of a shard says, asking the nodes that may lead it one after the other.
func (c *core) findLead(ctx context.Context, id engine.ShardID) (*lead, error) {
	d, err := c.find(ctx, id)
	if err != nil {
		return nil, err
	}
	var best *lead // each has confirmed that it leads; of two the later one still does
	ask := func(node engine.NodeID) bool {
		if node == 0 || !c.alive(node) {
			return false
		}
		actx, cancel := context.WithTimeout(ctx, askMax)
		defer cancel()
		list, err := c.askLeads(actx, node, id)
		if err == nil && len(list) == 1 && (best == nil || list[0].Term > best.Term) {
			best = &list[0]
		}
		return best != nil
	}
	if ask(c.view.leader(id)) {
		return best, nil
	}
	for _, r := range d.Replicas {
		ask(r.Node)
	}
	if best == nil {
		return nil, &shard.UnavailableError{Reason: fmt.Sprintf("shard %d has no leader that can be asked", id)}
	}
	c.view.learn(best.Descriptor)
	c.view.setLeader(id, best.Node)
	return best, nil
}
