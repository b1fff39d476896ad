package scheduler

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// Lane owns the replicas of its shards. Everything but the mailbox and the atomics belongs to whoever calls Turn.
type Lane struct {
	id   int
	s    *Scheduler
	log  *raftlog.Lane
	box  mailbox
	mail mail
	// overlayBytes is about what the overlays hold, frozen ones included; kept by what is applied and written, and counted anew when all are looked at.
	overlayBytes atomic.Int64
	unsent       int            // snapshots, since that was last logged
	unsentAt     engine.Instant // when it was
	held         []*replica     // they apply nothing until there is room for it (see hold.go)
	logOver      bool           // the raft log had too many segments at the last look

	// now and wall are the clocks of this turn, read after the mailbox was taken (rule Engine2).
	now      engine.Instant
	wall     int64
	links    engine.Links
	engines  *engine.Config // of all engines here
	linksSeq laneSeen

	byShard map[engine.ShardID]*replica
	// near has a replica at its shard's id modulo the length, a power of two, unless one that was added later stands there.
	near []*replica
	// list holds all replicas; sweeps walk over it in pieces.
	list []*replica
	// tombs are the highest replicas of their shards that were removed for good: a late message brings back none of them, nor an earlier one.
	tombs map[engine.ShardID]engine.ReplicaID
	// burials are the removed replicas whose tombstone is not durable yet, with who waits for that.
	burials map[store.Key][]func(error)
	// covered are those that a snapshot has absorbed whose link is not durable: see takeCovered.
	covered map[store.Key]covered
	// votes wait for replicas that an earlier one of their shard stands in the way of (rule Log7).
	votes     map[store.Key]engine.Vote
	mergers   []*replica // that are L in a merge
	unborn    []*birth   // splits that were just applied, whose children are not made yet
	timers    timers
	sweeps    []sweep
	dirtyList []*replica     // with something applied that no checkpoint holds
	stirred   []*replica     // those to which something was applied since the last look
	lookedAt  engine.Instant // when all of dirtyList were last looked at
	pinned    []store.Key
	// orphans are what the log holds of replicas that have no record: children whose parent has not been replayed to its split. They
	// are silent until then, for they have voted and acknowledged entries (rule Log7).
	orphans         map[engine.ShardID]*orphan
	delayed         []delayed
	transferRefused uint64
	refusedReason   engine.Reason // of transferRefused

	// cmds is the stack of commands being run.
	cmds []engine.Command
	ev   events

	// The log batch in the making, and those that wait to be durable.
	ios     []ioRef
	batches batchQueue

	// What waits for the log to be durable: see afterSync.
	submitNew              []func()
	syncNew                []func(*Lane)
	syncWaits              []syncWait
	lastBatch, syncedBatch uint64

	outs      map[engine.NodeID]*outbox
	bulk      map[bulkKey]bulkSent // big append requests under way
	dirtyOuts []*outbox
	dropped   []outStream
	droppedAt engine.Instant

	commits  []pendingCommit
	commitAt engine.Instant

	writes, writesSpare []*replica     // with writes that are not proposed yet
	heldBytes           int            // of them
	roundUntil          engine.Instant // when the first of them waits no more for an earlier round (see inRound); 0: none waits
	turnTime            engine.Instant // how long a turn takes, on average
	ended               engine.Instant // when the last turn did
	// ownBatch is the newest log batch with entries proposed here, until it is durable; ownSince is when it was submitted. What
	// comes meanwhile is gathered (see holdUntil).
	ownBatch uint64
	ownSince engine.Instant
	proposed bool           // in this turn
	proposal *Request       // a barrier entry that is just being handed to its shard's engine
	hintAt   engine.Instant // when hints alone are handed to the log; 0: there are none
	token    uint64
	enc      arena

	// Buffers for decoding and answering.
	env   *shard.Env
	write shard.Write
	get   shard.Read
	scan  shard.Scan
	ans   shard.Answer
	items []state.Item

	// fetchedBytes are of answers that were made in this turn of what was fetched.
	fetchedBytes int

	leaderless leaderless

	reads   []*replica // with reads that ask for a read index in this turn
	answers []*Request

	news laneNews

	inbound [aheadMax]wire.Message
	reader  wire.Reader
	inRuns  []wire.Run
	outRuns []wire.Run
	logRuns []raftlog.Run
	ahead   ahead
	current *replica // for the message of a panic
	count   counts
	slows   slowLog
	// commitLatency is of this turn.
	commitLatency tally
	// bySync is set while engines are told that their log is durable, afterApply while one is told that it has applied.
	bySync, afterApply bool
}

func newLane(s *Scheduler, id int) *Lane {
	l := &Lane{
		id: id, s: s,
		log:     s.log.Lane(id),
		byShard: map[engine.ShardID]*replica{},
		near:    make([]*replica, 1),
		tombs:   map[engine.ShardID]engine.ReplicaID{},
		burials: map[store.Key][]func(error){},
		covered: map[store.Key]covered{},
		votes:   map[store.Key]engine.Vote{},
		orphans: map[engine.ShardID]*orphan{},
		outs:    map[engine.NodeID]*outbox{},
		env:     &shard.Env{},
		news:    newLaneNews(id),
	}
	l.box.init()
	l.links.Nodes = s.live.links.Load().nodes
	c := &s.cfg
	l.engines = engine.Config{
		ElectionTimeoutMin: c.ElectionTimeoutMin, HeartbeatInterval: c.HeartbeatInterval, QuiesceAfter: c.QuiesceAfter, ClockDriftMax: c.ClockDriftMax,
		LeaseStart: s.leaseStart, UncommittedBytesMax: c.UncommittedBytesMax, InflightMax: c.InflightMessages, EntriesPerMessage: c.EntriesPerMessage,
		Links: &l.links,
	}.WithDefaults()
	return l
}

// counts are what happened in this turn, added to the metrics at its end.
type counts struct {
	requests, events, commands, received, applied, entries, proposals, readsLease, readsIndex uint64
}

// events are one struct per kind, reused: an engine keeps no reference to an event.
type events struct {
	write     engine.Write
	readIndex engine.ReadIndex
	flushed   engine.Flushed
	applied   engine.Applied
	voteReq   engine.VoteRequest
	voteResp  engine.VoteResponse
	appendReq engine.AppendRequest
	appendRes engine.AppendResponse
	hb        engine.Heartbeat
	hbResp    engine.HeartbeatResponse
	snapResp  engine.SnapshotResponse
	timeout   engine.TimeoutNow
	failed    engine.ReplicateFailed
	ckpt      engine.Checkpointed
	peerUp    engine.PeerUp
	peerDown  engine.PeerDown
}

var (
	tickEvent   = &engine.Tick{}
	wakeEvent   = &engine.Wake{}
	resignEvent = &engine.Resign{}
	leadEvent   = &engine.Lead{}
)

// feed hands ev to the engine of r and runs what comes out. What applying leads to follows when all commands of the
// event have run, so that the commands of one engine run in the order in which it gave them.
func (l *Lane) feed(r *replica, ev engine.Event) {
	if r.removed {
		return
	}
	prev := l.current
	l.current = r
	for ev != nil {
		base := len(l.cmds)
		l.count.events++
		l.cmds = r.eng.Handle(l.now, ev, l.cmds)
		n := len(l.cmds)
		l.count.commands += uint64(n - base)
		if n > base {
			l.log.Near(&r.index, r.key)
		}
		for i := base; i < n; i++ {
			if l.s.probe != nil {
				l.s.probe.Command(r.key, r.eng, &l.cmds[i])
			}
			l.runCommand(r, &l.cmds[i])
		}
		if l.s.probe != nil {
			l.s.probe.Fed(r.key, r.eng, ev)
		}
		l.cmds = l.cmds[:base] // what they point to is small, and let go of when the engine clears a place for the next
		ev = nil
		if r.apply.done {
			r.apply.done = false
			l.ev.applied = engine.Applied{LogID: r.machine.Applied()}
			ev = &l.ev.applied
			l.afterApply = true
		}
	}
	l.afterApply = false
	if !r.removed {
		deadline := r.eng.Deadline()
		if deadline == 0 && r.deadline != 0 {
			r.rest()
		}
		l.timers.set(r, deadline)
		if r.eng.Leader().Node != r.toldLeader { // a follower's is not a change of office here, and yet where clients must go
			l.announce(r)
		}
	}
	l.current = prev
}

// replicaOf is byShard for who asks for many, and looks into less memory: see near.
func (l *Lane) replicaOf(id engine.ShardID) *replica {
	if r := *l.nearAt(id); r != nil && r.key.Shard == id {
		return r
	}
	return l.byShard[id]
}

// nearAt returns the place of a shard in near.
func (l *Lane) nearAt(id engine.ShardID) **replica { return &l.near[uint64(id)&uint64(len(l.near)-1)] }

// noteNear gives a replica that is just being added its place in near.
func (l *Lane) noteNear(r *replica) {
	if len(l.list) >= len(l.near) {
		l.near = make([]*replica, 2*len(l.near))
		for _, r := range l.list {
			*l.nearAt(r.key.Shard) = r
		}
	}
	*l.nearAt(r.key.Shard) = r
}

// add makes r one of the lane's.
func (l *Lane) add(r *replica) error {
	if old := l.byShard[r.key.Shard]; old != nil {
		return fmt.Errorf("shard %d: replica %d is here, %d cannot be", r.key.Shard, old.key.Replica, r.key.Replica)
	}
	l.byShard[r.key.Shard] = r
	l.noteNear(r)
	r.listed = int32(len(l.list))
	l.list = append(l.list, r)
	l.s.replicas.Add(1)
	return nil
}

// shrink gives back the room of what was under way when the lane had more to do.
func (l *Lane) shrink() {
	l.log.Shrink()
	l.env.Arena.Shrink()
	l.enc = arena{}
	l.ahead = ahead{}
	clear(l.inbound[:])
	for _, list := range []*[]*replica{&l.stirred, &l.news.touched, &l.timers.heap} {
		if cap(*list) > 2*len(*list) {
			*list = slices.Clone(*list)
		}
	}
}

// drop forgets r, and what was to become of it.
func (l *Lane) drop(r *replica) {
	r.removed = true
	l.cancelMerge(r)
	if r.snapIn != nil && !r.linking {
		l.abortIngest(r.snapIn.ingest)
		r.snapIn = nil
	}
	l.touch(r)
	l.timers.remove(r)
	delete(l.byShard, r.key.Shard)
	if at := l.nearAt(r.key.Shard); *at == r {
		*at = nil
	}
	last, hole := len(l.list)-1, int(r.listed)
	if len(l.sweeps) > 0 && hole < l.sweeps[0].next {
		// The one that fills the place must not come from ahead of the sweep in progress to behind it, unseen.
		s := &l.sweeps[0]
		s.next--
		l.list[hole] = l.list[s.next]
		l.list[hole].listed = int32(hole)
		hole = s.next
	}
	l.list[hole] = l.list[last]
	l.list[hole].listed = int32(hole)
	l.list[last] = nil
	l.list = l.list[:last]
	l.s.replicas.Add(-1)
}

// ioBatch is one batch that was handed to the log: whose I/O is in it, and under which id.
type ioBatch struct {
	number uint64
	ios    []ioRef
	began  engine.Instant
}

type ioRef struct {
	r  *replica
	io engine.IOID
}

// batchQueue is a queue of batches that keeps their slices for reuse.
type batchQueue struct {
	q    []ioBatch
	free [][]ioRef
}

func (b *batchQueue) push(number uint64, now engine.Instant, made []ioRef) {
	var ios []ioRef
	if n := len(b.free); n > 0 {
		ios = b.free[n-1]
		b.free = b.free[:n-1]
	}
	for _, io := range made {
		io.r.ioPending++
	}
	b.q = append(b.q, ioBatch{number, append(ios, made...), now})
}

// pop removes the first batch if it is not newer than number.
func (b *batchQueue) pop(number uint64) ([]ioRef, bool) {
	if len(b.q) == 0 || b.q[0].number > number {
		return nil, false
	}
	ios := b.q[0].ios
	n := copy(b.q, b.q[1:])
	b.q[n] = ioBatch{}
	b.q = b.q[:n]
	return ios, true
}

func (b *batchQueue) release(ios []ioRef) {
	clear(ios)
	b.free = append(b.free, ios[:0])
}

// arena hands out buffers that are never reused: entries live on in the log's cache and in state machines.
type arena struct{ free []byte }

const arenaChunk = 256 << 10

// grab returns an empty buffer with room for n bytes. done returns what was not used.
func (a *arena) grab(n int) []byte {
	if n > arenaChunk/4 {
		return make([]byte, 0, n)
	}
	if n > cap(a.free) {
		a.free = make([]byte, 0, arenaChunk)
	}
	return a.free[:0:n]
}

// done takes back what is left behind b, which grab has returned and the caller has filled.
func (a *arena) done(b []byte) {
	if cap(a.free) > 0 && len(b) > 0 && len(b) <= cap(a.free) && &b[0] == &a.free[:1][0] {
		a.free = a.free[len(b):len(b):cap(a.free)]
	}
}

// delayed is something to be done at a later time. There are few of them, in no order.
type delayed struct {
	at engine.Instant
	do func(*Lane)
}

// later calls do after d.
func (l *Lane) later(d engine.Duration, do func(*Lane)) {
	l.delayed = append(l.delayed, delayed{l.now + engine.Instant(d), do})
}

func (l *Lane) runDelayed() {
	for i := 0; i < len(l.delayed); {
		d := l.delayed[i]
		if d.at > l.now {
			i++
			continue
		}
		last := len(l.delayed) - 1
		l.delayed[i] = l.delayed[last]
		l.delayed[last] = delayed{}
		l.delayed = l.delayed[:last]
		d.do(l)
	}
}
