package engine

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"sort"
	"testing"
)

// The cluster of this file is several engines on simulated time, disks and network, all from one seed. What it checks is in
// check_test.go.

const (
	simT         = 100_000 // election timeout, in µs
	simHeartbeat = 10_000
	simDrift     = 2_000
)

type simEntry struct {
	Term uint64
	Kind EntryKind
	Memb *Membership
	Data uint64
}

type simLog struct {
	purged  LogID
	entries []simEntry
}

func (l *simLog) last() uint64 { return l.purged.Index + uint64(len(l.entries)) }
func (l *simLog) at(i uint64) *simEntry {
	if i <= l.purged.Index || i > l.last() {
		return nil
	}
	return &l.entries[i-l.purged.Index-1]
}
func (l *simLog) term(i uint64) uint64 {
	if i == l.purged.Index {
		return l.purged.Term
	}
	if e := l.at(i); e != nil {
		return e.Term
	}
	return 0
}
func (l *simLog) truncate(first uint64) {
	if first <= l.last() {
		l.entries = l.entries[:first-l.purged.Index-1]
	}
}
func (l *simLog) purge(id LogID) {
	if id.Index <= l.purged.Index {
		return
	}
	if id.Index >= l.last() {
		l.entries = nil
	} else {
		l.entries = append([]simEntry(nil), l.entries[id.Index-l.purged.Index:]...)
	}
	l.purged = id
}
func (l *simLog) clone() simLog {
	return simLog{l.purged, append([]simEntry(nil), l.entries...)}
}

// simOp is one log operation on its way to the disk.
type simOp struct {
	kind    CommandKind
	io      IOID
	vote    Vote
	id      LogID
	first   uint64
	entries []simEntry
}

type simNode struct {
	s     *sim
	self  Peer
	eng   *Engine // nil while crashed
	life  uint64
	links *Links
	// disk
	vote      Vote
	disk      simLog
	committed LogID
	ckpt      LogID // durable state
	ckptMemb  MembershipAt
	// memory
	log     simLog
	ops     []simOp
	applied LogID
	memb    MembershipAt // at applied
	snaps   map[uint64]SnapshotMeta
	reads   map[uint64]uint64 // token → what must be applied
	tick    Instant
	heard   map[NodeID]Instant // last echo
	echo    map[NodeID]Instant // peer's last sentAt
	cmds    []Command
}

type simTask struct {
	at  Instant
	seq uint64
	run func()
}
type simTasks []simTask

func (q simTasks) Len() int { return len(q) }
func (q simTasks) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q simTasks) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simTasks) Push(x any)   { *q = append(*q, x.(simTask)) }
func (q *simTasks) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = simTask{}
	*q = old[:len(old)-1]
	return t
}

type simFaults struct{ drop, dup, slow float64 }

type sim struct {
	t      testing.TB
	seed   uint64
	rng    *rand.Rand
	now    Instant
	seq    uint64
	tasks  simTasks
	nodes  []*simNode
	faults simFaults
	cut    map[[2]NodeID]bool
	token  uint64
	data   uint64
	trace  []string
	quiet  Duration
	check  simCheck
}

func newSim(t testing.TB, seed uint64, nodes, voters int, quiesce Duration) *sim {
	s := &sim{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), now: 1_000_000, cut: map[[2]NodeID]bool{}, quiet: quiesce}
	s.check.init(s)
	var set []Peer
	for i := 1; i <= nodes; i++ {
		p := Peer{NodeID(i), ReplicaID(100 + i)}
		if i <= voters {
			set = append(set, p)
		}
		s.nodes = append(s.nodes, &simNode{s: s, self: p})
	}
	m := MembershipAt{LogID{1, 1}, &Membership{Voters: [][]Peer{set}}}
	for i, n := range s.nodes {
		if i < voters {
			n.ckpt, n.disk.purged, n.ckptMemb = LogID{1, 1}, LogID{1, 1}, m
		}
		n.boot()
	}
	s.every(simHeartbeat/2, s.nodeHeartbeats)
	return s
}

func (s *sim) after(d Duration, run func()) {
	s.seq++
	heap.Push(&s.tasks, simTask{s.now + Instant(d), s.seq, run})
}

func (s *sim) every(d Duration, run func()) {
	s.after(d, func() { run(); s.every(d, run) })
}

func (s *sim) chance(p float64) bool { return s.rng.Float64() < p }

func (s *sim) delay() Duration {
	d := Duration(200 + s.rng.IntN(2000))
	if s.chance(s.faults.slow) {
		d += Duration(s.rng.IntN(2 * simT))
	}
	return d
}

func (s *sim) fatalf(format string, args ...any) {
	s.t.Helper()
	for _, n := range s.nodes {
		if n.eng != nil {
			s.t.Logf("%v %+v memb %+v prev %+v progress %+v", n.self, n.eng.Status(), n.eng.memb.Membership, n.eng.prev, n.eng.Progress(nil))
		}
	}
	for _, l := range s.trace[max(0, len(s.trace)-120):] {
		s.t.Log(l)
	}
	s.t.Fatalf("seed %d at %d: %s", s.seed, s.now, fmt.Sprintf(format, args...))
}

func (s *sim) tracef(format string, args ...any) {
	if len(s.trace) > 4000 {
		s.trace = append(s.trace[:0], s.trace[2000:]...)
	}
	s.trace = append(s.trace, fmt.Sprintf("%d ", s.now)+fmt.Sprintf(format, args...))
}

// runUntil moves time forward, running tasks and engines' deadlines in order.
func (s *sim) runUntil(end Instant) {
	for {
		next := end
		if len(s.tasks) > 0 {
			next = min(next, s.tasks[0].at)
		}
		var due *simNode
		for _, n := range s.nodes {
			if n.eng == nil {
				continue
			}
			if d := n.eng.Deadline(); d != 0 && max(d, n.tick) < next {
				next, due = max(d, n.tick), n
			}
		}
		s.now = max(s.now, next)
		switch {
		case due != nil:
			due.tick = s.now + 100 // a runtime has a resolution
			due.feed(&Tick{})
		case next >= end && (len(s.tasks) == 0 || s.tasks[0].at > end):
			return
		default:
			heap.Pop(&s.tasks).(simTask).run()
		}
	}
}

func (s *sim) node(id NodeID) *simNode { return s.nodes[id-1] }

func (n *simNode) boot() {
	s := n.s
	n.life++
	n.log = n.disk.clone()
	n.ops = nil
	n.applied, n.memb = n.ckpt, n.ckptMemb
	if n.ckpt.Index > n.log.purged.Index { // rule Log7
		if n.log.term(n.ckpt.Index) != n.ckpt.Term {
			n.log = simLog{purged: n.ckpt}
			n.disk = n.log.clone()
		}
	}
	n.snaps, n.reads = map[uint64]SnapshotMeta{}, map[uint64]uint64{}
	n.heard, n.echo = map[NodeID]Instant{}, map[NodeID]Instant{}
	n.links = &Links{Nodes: map[NodeID]Link{}}
	rec := Recovered{Vote: n.vote, Purged: n.log.purged, Committed: n.committed, Applied: n.ckpt, Incarnation: n.life}
	rec.Membership = n.ckptMemb
	for i := range n.log.entries {
		e, at := n.log.entries[i], n.log.purged.Index+1+uint64(i)
		if k := len(rec.Runs); k > 0 && rec.Runs[k-1].Term == e.Term {
			rec.Runs[k-1].Last = at
		} else {
			rec.Runs = append(rec.Runs, TermRun{e.Term, at, at})
		}
		if e.Kind == EntryMembership && at > n.ckptMemb.LogID.Index {
			rec.Previous, rec.Membership = rec.Membership, MembershipAt{LogID{e.Term, at}, e.Memb}
		}
		if e.Kind == EntryBarrier && at > n.ckpt.Index {
			rec.Barriers = append(rec.Barriers, at)
		}
	}
	if n.committed.Index > n.log.last() {
		rec.Committed = LogID{n.log.term(n.log.last()), n.log.last()}
	}
	cfg := Config{
		ElectionTimeoutMin: simT, HeartbeatInterval: simHeartbeat, QuiesceAfter: s.quiet, ClockDriftMax: simDrift,
		UncommittedBytesMax: 400, InflightMax: 4, EntriesPerMessage: 5, Links: n.links,
	}
	if n.life > 1 {
		cfg.LeaseStart = s.now + simT
	}
	n.eng = New(cfg.WithDefaults(), n.self, s.seed, rec)
	n.tick = 0
	s.tracef("boot %v life %d vote %+v last %d ckpt %v", n.self, n.life, n.vote, n.log.last(), n.ckpt)
}

// crash loses what was not flushed; a prefix of the queue may have made it.
func (n *simNode) crash() {
	if n.eng == nil {
		return
	}
	n.flush(n.s.rng.IntN(len(n.ops)+1), false)
	n.eng = nil
	n.s.tracef("crash %v", n.self)
}

func (n *simNode) feed(ev Event) {
	if n.eng == nil {
		return
	}
	was := n.eng.IsLeader()
	n.cmds = n.eng.Handle(n.s.now, ev, n.cmds[:0])
	cmds := append([]Command(nil), n.cmds...)
	n.s.tracef("%v <- %T%+v", n.self, ev, ev)
	for i := range cmds {
		n.run(&cmds[i], ev)
	}
	n.s.check.after(n, was)
}

// later feeds ev to this life of n.
func (n *simNode) later(d Duration, ev Event) {
	life := n.life
	n.s.after(d, func() {
		if n.life == life {
			n.feed(ev)
		}
	})
}

func (n *simNode) send(to Peer, ev Event) {
	s := n.s
	copies := 1
	if s.chance(s.faults.dup) {
		copies = 2
	}
	for ; copies > 0; copies-- {
		if s.chance(s.faults.drop) || s.cut[[2]NodeID{n.self.Node, to.Node}] {
			continue
		}
		s.after(s.delay(), func() {
			if s.cut[[2]NodeID{n.self.Node, to.Node}] {
				return
			}
			s.node(to.Node).feed(ev)
		})
	}
}

func (n *simNode) run(c *Command, ev Event) {
	s := n.s
	switch c.Kind {
	case AppendInputEntries, TruncateLog, SaveVote:
		n.storage(c, ev)
	case PurgeLog:
		n.log.purge(c.LogID)
		n.queue(simOp{kind: c.Kind, id: c.LogID})
	case SaveCommitted:
		n.queue(simOp{kind: c.Kind, id: c.LogID})
	case Apply:
		first, last := c.First, c.Last
		life := n.life
		s.after(Duration(s.rng.IntN(1+s.rng.IntN(4)*1000)), func() {
			if n.life == life && n.eng != nil {
				n.apply(first, last)
			}
		})
	case InstallSnapshot:
		n.install(c.Token)
	case RejectSnapshot:
		delete(n.snaps, c.Token)
	case ReadReady:
		s.check.readReady(n, c.Token)
	case FailPendingReads:
		for t := range n.reads {
			if t <= c.Token {
				delete(n.reads, t)
			}
		}
	case Refuse:
		delete(n.reads, c.Token)
	default:
		n.network(c)
	}
}

func (n *simNode) queue(op simOp) {
	n.ops = append(n.ops, op)
	life := n.life
	n.s.after(Duration(200+n.s.rng.IntN(3000)), func() {
		if n.life == life && n.eng != nil && len(n.ops) > 0 {
			n.flush(1+n.s.rng.IntN(len(n.ops)), true)
		}
	})
}

func (n *simNode) storage(c *Command, ev Event) {
	op := simOp{kind: c.Kind, io: c.IO, vote: c.Vote, first: c.First}
	switch c.Kind {
	case TruncateLog:
		n.log.truncate(c.First)
	case AppendInputEntries:
		if c.First != n.log.last()+1 {
			n.s.fatalf("%v appends %d..%d behind %d", n.self, c.First, c.Last, n.log.last())
		}
		for i := c.First; i <= c.Last; i++ {
			e := simEntry{Term: c.IO.Vote.Term, Kind: c.Entry, Memb: c.Membership}
			switch {
			case c.Inbound:
				m := n.s.check.bodies[ev.(*AppendRequest)]
				e = m[i-ev.(*AppendRequest).Prev.Index-1]
			default:
				n.s.data++
				e.Data = n.s.data
			}
			n.log.entries = append(n.log.entries, e)
			op.entries = append(op.entries, e)
			n.s.check.appended(n, i, e)
		}
	}
	n.queue(op)
}

// flush makes the first k operations durable.
func (n *simNode) flush(k int, tell bool) {
	var io IOID
	for _, op := range n.ops[:k] {
		switch op.kind {
		case SaveVote:
			n.vote = op.vote
		case TruncateLog:
			n.disk.truncate(op.first)
		case AppendInputEntries:
			if n.disk.last()+1 != op.first {
				n.s.fatalf("%v disk append %d behind %d", n.self, op.first, n.disk.last())
			}
			n.disk.entries = append(n.disk.entries, op.entries...)
		case PurgeLog:
			n.disk.purge(op.id)
		case SaveCommitted:
			n.committed = op.id
		}
		if op.io != (IOID{}) {
			io = op.io
		}
	}
	n.ops = append([]simOp(nil), n.ops[k:]...)
	if tell && io != (IOID{}) {
		n.feed(&Flushed{IO: io})
	}
}

func (n *simNode) apply(first, last uint64) {
	if n.applied.Index >= first {
		return // a snapshot came in between
	}
	for i := first; i <= last; i++ {
		e := n.log.at(i)
		if e == nil || i != n.applied.Index+1 {
			n.s.fatalf("%v applies %d..%d, has %d..%d, applied %v", n.self, first, last, n.log.purged.Index+1, n.log.last(), n.applied)
		}
		if d := n.disk.at(i); d == nil || d.Data != e.Data {
			n.s.fatalf("%v applies %d, which is not durable", n.self, i)
		}
		n.s.check.applied(n, i, *e)
		n.applied = LogID{e.Term, i}
		if e.Kind == EntryMembership {
			n.memb = MembershipAt{n.applied, e.Memb}
		}
	}
	n.feed(&Applied{LogID: n.applied})
}

func (n *simNode) install(token uint64) {
	meta := n.snaps[token]
	life := n.life
	n.s.after(Duration(n.s.rng.IntN(20_000)), func() {
		if n.life != life || n.eng == nil {
			return
		}
		if meta.Last.Index <= n.applied.Index {
			n.feed(&SnapshotInstalled{Token: token, Meta: meta, Superseded: true})
			return
		}
		n.ckpt, n.ckptMemb = meta.Last, meta.Membership
		n.applied, n.memb = meta.Last, meta.Membership
		// The log follows by the engine's commands; what the disk holds is judged at recovery (rule Log7).
		n.feed(&SnapshotInstalled{Token: token, Meta: meta})
	})
}

func (n *simNode) network(c *Command) {
	s := n.s
	peers := func() []Peer {
		var out []Peer
		for _, p := range n.eng.memb.Membership.appendPeers(nil) {
			if p != n.self {
				out = append(out, p)
			}
		}
		return out
	}
	switch c.Kind {
	case Replicate:
		n.replicate(c)
	case ReplicateCommitted, BroadcastHeartbeat:
		for _, p := range peers() {
			n.send(p, &Heartbeat{From: n.self, Vote: c.Vote, Commit: c.LogID, Round: c.Round, SentAt: c.SentAt})
		}
	case SendHeartbeat:
		h := *c.Heartbeat
		n.send(c.To, &h)
	case SendVote, SendPreVote:
		for _, p := range peers() {
			if n.eng.memb.Membership.IsVoter(p) {
				n.send(p, &VoteRequest{From: n.self, Pre: c.Kind == SendPreVote, Vote: c.Vote, LastLog: c.LogID, TransferOf: c.TransferOf})
			}
		}
	case SendTimeoutNow:
		n.send(c.To, &TimeoutNow{From: n.self, Vote: c.Vote})
	case ReplicateSnapshot:
		s.token++
		ev := &SnapshotReceived{Token: s.token, From: n.self, Vote: c.Vote, Stream: c.Stream, Meta: SnapshotMeta{n.applied, n.memb}}
		to, stream := c.To, c.Stream
		if s.chance(s.faults.drop * 2) {
			n.later(10_000, &SnapshotFailed{To: to, Stream: stream})
			return
		}
		s.after(Duration(s.rng.IntN(30_000)), func() {
			t := s.node(to.Node)
			if t.eng == nil || s.cut[[2]NodeID{n.self.Node, to.Node}] {
				n.later(1000, &SnapshotFailed{To: to, Stream: stream})
				return
			}
			t.snaps[ev.Token] = ev.Meta
			t.feed(ev)
		})
		n.later(5*simT, &SnapshotFailed{To: to, Stream: stream})
	case Respond:
		switch c.Response {
		case RespondVote:
			r := *c.VoteResponse
			n.send(c.To, &r)
		case RespondAppend:
			r := c.AppendResponse
			n.send(c.To, &r)
		case RespondHeartbeat:
			r := c.HeartbeatResponse
			n.send(c.To, &r)
		case RespondSnapshot:
			r := *c.SnapshotResponse
			n.send(c.To, &r)
		}
	}
}

func (n *simNode) replicate(c *Command) {
	s := n.s
	if !n.eng.StreamLive(c.To, c.Stream) {
		return
	}
	if s.chance(s.faults.drop / 4) {
		n.later(0, &ReplicateFailed{To: c.To, Stream: c.Stream})
		return
	}
	m := &AppendRequest{From: n.self, Vote: c.Vote, Prev: c.Prev, Commit: c.LogID, Stream: c.Stream, Seq: c.Seq, SentAt: c.SentAt}
	var body []simEntry
	for i := c.First; i <= c.Last; i++ {
		e := n.log.at(i)
		body = append(body, *e)
		if k := len(m.Runs); k > 0 && m.Runs[k-1].Term == e.Term {
			m.Runs[k-1].Last = i
		} else {
			m.Runs = append(m.Runs, TermRun{e.Term, i, i})
		}
		switch e.Kind {
		case EntryMembership:
			m.Memberships = append(m.Memberships, MembershipAt{LogID{e.Term, i}, e.Memb})
		case EntryBarrier:
			m.Barriers = append(m.Barriers, i)
		}
	}
	s.check.bodies[m] = body
	n.send(c.To, m)
}

// nodeHeartbeats is the runtime's part of rule Engine2: node-level heartbeats and their echoes keep the Links.
func (s *sim) nodeHeartbeats() {
	for _, a := range s.nodes {
		if a.eng == nil {
			continue
		}
		for _, b := range s.nodes {
			if a == b {
				continue
			}
			if last, ok := a.heard[b.self.Node]; ok && s.now-last > simT {
				delete(a.heard, b.self.Node)
				l := a.links.Nodes[b.self.Node]
				l.Up = false
				a.links.Nodes[b.self.Node] = l
				a.feed(&PeerDown{Node: b.self.Node})
			}
			a.nodeHeartbeat(b)
		}
	}
}

func (n *simNode) nodeHeartbeat(b *simNode) {
	s, from, to := n.s, n.self.Node, b.self.Node
	sentAt, life := s.now, n.life
	echo, hasEcho := n.echo[to]
	echoLife := b.life
	l := n.links.Nodes[to]
	if hasEcho {
		if s.now > l.PromisedUntil {
			l.PromiseEpoch++
		}
		l.PromisedUntil = s.now + simT
		n.links.Nodes[to] = l
	}
	if s.chance(s.faults.drop) || s.cut[[2]NodeID{from, to}] {
		return
	}
	s.after(s.delay(), func() {
		if b.eng == nil || s.cut[[2]NodeID{from, to}] || life != n.life {
			return
		}
		k := b.links.Nodes[from]
		if k.Incarnation != life {
			k = Link{Incarnation: life}
			delete(b.heard, from)
			delete(b.echo, from)
		}
		b.echo[from] = max(b.echo[from], sentAt)
		up := false
		if hasEcho && echoLife == b.life {
			until := echo + simT - simDrift
			if s.now > k.GrantedUntil {
				k.GrantEpoch++
			}
			k.GrantedUntil = max(k.GrantedUntil, until)
			b.heard[from] = s.now
			up, k.Up = !k.Up, true
		}
		b.links.Nodes[from] = k
		if up {
			b.feed(&PeerUp{Node: from, Incarnation: life})
		}
	})
}

func (s *sim) leader() *simNode {
	var best *simNode
	for _, n := range s.nodes {
		if n.eng != nil && n.eng.IsLeader() && (best == nil || n.eng.vote.Term > best.eng.vote.Term) {
			best = n
		}
	}
	return best
}

func (s *sim) sortedTokens(m map[uint64]uint64) []uint64 {
	var out []uint64
	for t := range m {
		out = append(out, t)
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}
