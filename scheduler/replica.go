package scheduler

import (
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// replica is one replica of this node. Everything in it belongs to its lane.
//
// What most events look at stands first, and what is looked at together stands together: with thousands of shards a replica is in none of the CPU's
// caches, and each of its lines of 64 bytes is waited for.
type replica struct {
	key store.Key
	eng *engine.Engine
	// machine is nil while the replica is uninitialised (rule Split4).
	machine *shard.Machine
	// Timer: the deadline that the engine wants, and the key under which the heap has it.
	deadline engine.Instant
	timerKey engine.Instant
	timerAt  int32 // its place in the heap; -1: none
	// commitAt is the place in Lane.commits of what waits to be told to the followers, ioAt that in Lane.ios of what the log batch in the
	// making holds, each counted from 1; 0: nothing.
	commitAt, ioAt int32
	removed        bool
	held           bool // is in Lane.held
	stopped        bool // for good, by an entry that it does not understand
	wantSnapshot   bool // as L in a merge: R is not here, only a snapshot of L helps

	// peers are the others in the membership in force, the voters first, with what they were last told to be committed.
	peers      []peerSlot
	memberAt   engine.LogID
	index      raftlog.Index // where the log has what it knows of the replica
	toldLeader engine.NodeID // as last announced
	ioPending  int32         // in how many batches that are not durable yet it has I/O
	voters     int16         // how many of peers are
	// ordered is how many splits and merges were ordered and are neither proposed nor refused yet: they wait for this or the other shard to settle.
	ordered int16

	apply applyState
	// heardAt is when the leader last announced what is applied here by now, for stale reads (rule Cluster4). aheadAt, if not 0, is when
	// it announced the commit index ahead, which is not applied yet.
	heardAt, aheadAt engine.Instant
	stirred          bool // is in Lane.stirred
	dirtyListed      bool // is in Lane.dirtyList
	linking          bool // a snapshot is being linked in
	touched          bool // is in Lane.news.touched
	timeWrite        bool // a time entry goes with the writes of the turn (rule State8)
	barrier          bool // a barrier entry was proposed here and is not decided
	provoked         bool
	handingOver      bool

	waiters waiters
	// Writes of the turn, waiting to be one engine.Write.
	writeHead, writeTail *Request
	writeCount           int32
	writeBytes           int32
	roundUntil           engine.Instant // until then they wait for the writes proposed before them to be applied (see inRound)

	// run is the newest run that this leader encoded, so that replicating it needs no look into the log's cache.
	run   *ownRun
	lane  *Lane
	load  Load
	reads *readQueue // nil: no read has waited since it last fell asleep
	ahead uint64

	ckpt  ckptState
	birth *birth // a split of this replica, or that made it, whose checkpoint is not written yet

	// As L in a merge: the Merge being applied; as its leader: the merge that it drives.
	merge     *absorb
	drive     *mergeDrive
	orderedAt engine.Instant

	snapNote *string // why the last snapshot to a follower was not sent; nil if it was
	snapIn   *snapshotIn
	bornAt   engine.Instant
	replayTo uint64 // what was committed before this life, as far as it is known: the first Apply goes so far

	listed     int32 // its place in Lane.list
	merging    bool  // is in Lane.mergers
	otherMoved bool  // as L in a merge: R has taken Unfreeze
	purgeAll   bool  // the next checkpoint purges all it may: the log needs the room
	rewriting  bool  // its log is being read, to be rewritten
	pins       uint8 // rewrites of its log in a row that were refused, up to pinsMax
}

// rest lets go of what r needs only while it is awake.
func (r *replica) rest() {
	r.run = nil
	if r.waiters.len() == 0 {
		r.waiters = waiters{}
	}
	if r.reads.empty() {
		r.reads = nil
	}
}

// self is the replica as its peers know it.
func (r *replica) self() engine.Peer {
	return engine.Peer{Node: r.lane.s.cfg.Node, Replica: r.key.Replica}
}

// peerSlot is one other member.
type peerSlot struct {
	peer   engine.Peer
	commit engine.LogID // the newest commit index sent to it with entries
}

type ownRun struct {
	term, first uint64
	count       int32
	special     bool
	body        []byte
}

// refreshPeers brings peers in line with the membership in force. Cheap if nothing changed.
func (r *replica) refreshPeers() {
	if r.peers != nil && r.eng.MembershipID() == r.memberAt {
		return
	}
	st := r.eng.Status()
	r.memberAt = st.Membership.LogID
	r.peers, r.voters = r.peers[:0], 0
	m := st.Membership.Membership
	if m == nil {
		return
	}
	for _, set := range m.Voters {
		for _, p := range set {
			r.addPeer(p)
		}
	}
	r.voters = int16(len(r.peers))
	for _, p := range m.Learners {
		r.addPeer(p)
	}
}

func (r *replica) addPeer(p engine.Peer) {
	if p == r.self() {
		return
	}
	for i := range r.peers {
		if r.peers[i].peer == p {
			return
		}
	}
	r.peers = append(r.peers, peerSlot{peer: p})
}

// otherVoters are the voters among its peers.
func (r *replica) otherVoters() []peerSlot { return r.peers[:r.voters] }

// learner tells whether p is another member, and no voter.
func (r *replica) learner(p engine.Peer) bool {
	return slices.ContainsFunc(r.peers[r.voters:], func(s peerSlot) bool { return s.peer == p })
}

// stranger tells whether r leads its shard and p is no member, as of the membership in force: p was removed and has not heard of it.
// No quorum of that membership counts its promise.
func (r *replica) stranger(p engine.Peer) bool {
	if !r.eng.IsLeader() {
		return false
	}
	r.refreshPeers()
	return r.slot(p) == nil
}

// hasNode tells whether another member lives on node.
func (r *replica) hasNode(node engine.NodeID) bool {
	for i := range r.peers {
		if r.peers[i].peer.Node == node {
			return true
		}
	}
	return false
}

// slot returns the slot of p, or nil.
func (r *replica) slot(p engine.Peer) *peerSlot {
	for i := range r.peers {
		if r.peers[i].peer == p {
			return &r.peers[i]
		}
	}
	return nil
}

// waiter is a write that was appended at (term, index) and waits to be applied (rule Engine6).
type waiter struct {
	term, index uint64
	req         *Request
}

// waiters is a queue: terms never fall in it, and within a term indexes grow.
type waiters struct {
	q    []waiter
	head int
}

func (w *waiters) push(x waiter) {
	if w.head > 0 && w.head == len(w.q) {
		w.q, w.head = w.q[:0], 0
	} else if w.head > 64 && w.head*2 > len(w.q) {
		n := copy(w.q, w.q[w.head:])
		clear(w.q[n:])
		w.q, w.head = w.q[:n], 0
	}
	w.q = append(w.q, x)
}

func (w *waiters) front() *waiter {
	if w.head == len(w.q) {
		return nil
	}
	return &w.q[w.head]
}

func (w *waiters) pop() *Request {
	r := w.q[w.head].req
	w.q[w.head] = waiter{}
	w.head++
	if w.head == len(w.q) {
		w.q, w.head = w.q[:0], 0
	}
	return r
}

func (w *waiters) len() int { return len(w.q) - w.head }

// pendingCommit is a ReplicateCommitted that waits to be merged with other messages.
type pendingCommit struct {
	r      *replica
	vote   engine.Vote
	id     engine.LogID
	sentAt engine.Instant
}
