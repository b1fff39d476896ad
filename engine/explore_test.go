package engine

import (
	"encoding/binary"
	"flag"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// The explorer takes the real engine through all interleavings of delivery, loss, duplication, flush, apply, crash, time-out, proposal and
// change of members, to a bounded depth, from several starting points. States are compared by hash; in each the invariants of Raft are
// checked, on the state and on what has been chosen on the way to it.
//
// Time is one for all nodes. It moves by time-outs only: to the deadline of the replica that times out.

var (
	exploreStates = flag.Int("explore.states", 45_000, "how many distinct states to visit from each starting point")
	exploreDepth  = flag.Int("explore.depth", 14, "how many steps from a starting point")
)

// budget bounds what would otherwise go on for ever. It is part of the state.
type budget struct{ timeouts, drops, dups, crashes, writes, changes int8 }

type exEntry struct {
	term uint64
	data uint64
	kind EntryKind
	memb *Membership
}

type exOp struct {
	kind    CommandKind
	io      IOID
	vote    Vote
	id      LogID
	first   uint64
	entries []exEntry
}

// exNode is one replica with its disk. Slices are never changed in place, so that a copy of the struct is a copy of the state.
type exNode struct {
	self      Peer
	eng       *Engine
	life      uint64
	vote      Vote
	disk, log []exEntry // entry i has index i+2
	committed LogID
	ops       []exOp
	applied   uint64
	apply     [2]uint64 // outstanding
}

type exMsg struct {
	to   Peer
	ev   Event
	body []exEntry
	hash uint64
}

type exState struct {
	now   Instant
	left  budget
	nodes []exNode
	msgs  []exMsg
	data  uint64
	// Ghosts: who led which term, what was chosen, what a leader has applied.
	leaders []office
	chosen  []exEntry
	by      []uint64 // in which term they were chosen
	acked   uint64
}

type office struct {
	term, life uint64
	node       NodeID
}

const exT = 1000

func (e *Engine) clone() *Engine {
	c := *e
	c.out = nil
	c.log.runs = slices.Clone(e.log.runs)
	if e.io.work != &idle {
		w := *e.io.work
		w.queue, w.held, w.barriers = slices.Clone(w.queue), slices.Clone(w.held), slices.Clone(w.barriers)
		c.io.work = &w
	}
	if e.race != nil {
		r := *e.race
		r.granted = slices.Clone(r.granted)
		c.race = &r
	}
	if e.lead != nil {
		l := *e.lead
		l.followers = slices.Clone(l.followers)
		if l.bytes != nil {
			b := *l.bytes
			l.bytes = &b
		}
		c.lead = &l
	}
	if e.snap != nil {
		s := *e.snap
		c.snap = &s
	}
	return &c
}

func (s *exState) clone() *exState {
	c := *s
	c.nodes = slices.Clone(s.nodes)
	c.msgs = slices.Clone(s.msgs)
	c.leaders, c.chosen, c.by = slices.Clone(s.leaders), slices.Clone(s.chosen), slices.Clone(s.by)
	return &c
}

// touch makes a node's engine the state's own.
func (s *exState) touch(i int) *exNode {
	n := &s.nodes[i]
	n.eng = n.eng.clone()
	return n
}

func exPeer(i int) Peer { return Peer{NodeID(i + 1), ReplicaID(i + 1)} }

func newExState(nodes, voters int, left budget) *exState {
	s := &exState{now: 1000, left: left}
	for i := range nodes {
		s.nodes = append(s.nodes, exNode{self: exPeer(i), applied: 1})
	}
	var set []Peer
	for i := range voters {
		set = append(set, exPeer(i))
	}
	for i := range nodes {
		m := &Membership{Voters: [][]Peer{set}}
		s.boot(i, MembershipAt{LogID{1, 1}, m})
	}
	return s
}

// boot starts a replica from its disk. A replica that is not in the first membership holds it all the same: it was filled by a snapshot.
func (s *exState) boot(i int, first MembershipAt) {
	n := &s.nodes[i]
	n.life++
	n.log, n.ops, n.applied, n.apply = n.disk, nil, 1, [2]uint64{}
	rec := Recovered{Vote: n.vote, Purged: LogID{1, 1}, Applied: LogID{1, 1}, Committed: n.committed, Membership: first, Incarnation: n.life}
	for k, e := range n.disk {
		at := uint64(k) + 2
		if l := len(rec.Runs); l > 0 && rec.Runs[l-1].Term == e.term {
			rec.Runs[l-1].Last = at
		} else {
			rec.Runs = append(rec.Runs, TermRun{e.term, at, at})
		}
		if e.kind == EntryMembership {
			rec.Previous, rec.Membership = rec.Membership, MembershipAt{LogID{e.term, at}, e.memb}
		}
	}
	cfg := Config{ElectionTimeoutMin: exT, HeartbeatInterval: exT / 10, ClockDriftMax: 1, InflightMax: 2, EntriesPerMessage: 2}
	if n.life > 1 {
		cfg.LeaseStart = s.now + exT
	}
	n.eng = New(cfg.WithDefaults(), n.self, 0, rec)
}

func (s *exState) feed(i int, ev Event, body []exEntry) {
	n := s.touch(i)
	cmds := n.eng.Handle(s.now, ev, nil)
	for k := range cmds {
		s.run(n, &cmds[k], body, ev)
	}
}

func (s *exState) run(n *exNode, c *Command, body []exEntry, ev Event) {
	op := exOp{kind: c.Kind, io: c.IO, vote: c.Vote, id: c.LogID, first: c.First}
	switch c.Kind {
	case SaveVote, SaveCommitted:
	case TruncateLog:
		n.log = n.log[: c.First-2 : c.First-2]
	case AppendInputEntries:
		for at := c.First; at <= c.Last; at++ {
			e := exEntry{term: c.IO.Last.Term, kind: c.Entry, memb: c.Membership}
			if c.Inbound {
				e = body[at-ev.(*AppendRequest).Prev.Index-1]
			} else {
				s.data++
				e.data = s.data
			}
			op.entries = append(op.entries, e)
		}
		n.log = append(n.log[:len(n.log):len(n.log)], op.entries...)
	case Apply:
		n.apply = [2]uint64{c.First, c.Last}
		return
	default:
		s.network(n, c)
		return
	}
	n.ops = append(n.ops[:len(n.ops):len(n.ops)], op)
}

func (s *exState) network(n *exNode, c *Command) {
	m := n.eng.memb.Membership
	all := func(ev Event, voters bool) {
		for _, p := range m.appendPeers(nil) {
			if p != n.self && (!voters || m.IsVoter(p)) {
				s.send(p, ev, nil)
			}
		}
	}
	switch c.Kind {
	case Replicate:
		r := &AppendRequest{From: n.self, Vote: c.Vote, Prev: c.Prev, Commit: c.LogID, Stream: c.Stream, Seq: c.Seq, SentAt: c.SentAt}
		var body []exEntry
		for at := c.First; at <= c.Last; at++ {
			e := n.log[at-2]
			body = append(body, e)
			if k := len(r.Runs); k > 0 && r.Runs[k-1].Term == e.term {
				r.Runs[k-1].Last = at
			} else {
				r.Runs = append(r.Runs, TermRun{e.term, at, at})
			}
			if e.kind == EntryMembership {
				r.Memberships = append(r.Memberships, MembershipAt{LogID{e.term, at}, e.memb})
			}
		}
		s.send(c.To, r, body)
	case ReplicateCommitted, BroadcastHeartbeat:
		all(&Heartbeat{From: n.self, Vote: c.Vote, Commit: c.LogID, Round: c.Round, SentAt: c.SentAt}, false)
	case SendHeartbeat:
		h := *c.Heartbeat
		s.send(c.To, &h, nil)
	case SendVote, SendPreVote:
		all(&VoteRequest{From: n.self, Pre: c.Kind == SendPreVote, Vote: c.Vote, LastLog: c.LogID, TransferOf: c.TransferOf}, true)
	case SendTimeoutNow:
		s.send(c.To, &TimeoutNow{From: n.self, Vote: c.Vote}, nil)
	case Respond:
		switch c.Response {
		case RespondVote:
			r := *c.VoteResponse
			s.send(c.To, &r, nil)
		case RespondAppend:
			r := c.AppendResponse
			s.send(c.To, &r, nil)
		case RespondHeartbeat:
			r := c.HeartbeatResponse
			s.send(c.To, &r, nil)
		}
	}
}

func (s *exState) send(to Peer, ev Event, body []exEntry) {
	if int(to.Node) > len(s.nodes) {
		return
	}
	m := exMsg{to: to, ev: ev, body: body}
	var zero Event
	switch e := ev.(type) { // times are left out
	case *AppendRequest:
		c := *e
		c.SentAt, c.Memberships = 0, nil
		zero = &c
	case *AppendResponse:
		c := *e
		c.SentAt = 0
		zero = &c
	case *Heartbeat:
		c := *e
		c.SentAt = 0
		zero = &c
	case *HeartbeatResponse:
		c := *e
		c.SentAt = 0
		zero = &c
	default:
		zero = ev
	}
	b := binary.AppendUvarint(make([]byte, 0, 256), uint64(to.Node))
	v := reflect.ValueOf(zero).Elem()
	b = appendAll(append(b, v.Type().Name()...), v)
	for _, e := range body {
		b = binary.AppendUvarint(b, e.data)
	}
	m.hash = xxhash.Sum64(b)
	for i := range s.msgs {
		if s.msgs[i].hash == m.hash {
			s.msgs[i] = m // the same, newer
			return
		}
	}
	s.msgs = append(s.msgs, m)
	slices.SortFunc(s.msgs, func(a, b exMsg) int {
		if a.hash < b.hash {
			return -1
		}
		return 1
	})
}

// appendAll appends all that v holds, field by field, so that no field can be forgotten.
func appendAll(b []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			b = appendAll(b, v.Field(i))
		}
	case reflect.Slice:
		b = binary.AppendUvarint(b, uint64(v.Len()))
		for i := range v.Len() {
			b = appendAll(b, v.Index(i))
		}
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return binary.AppendVarint(b, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return binary.AppendUvarint(b, v.Uint())
	default:
		panic("a message holds " + v.Type().String())
	}
	return b
}

// flush makes the first k operations durable.
func (s *exState) flush(i, k int) {
	n := &s.nodes[i]
	var io IOID
	for _, op := range n.ops[:k] {
		switch op.kind {
		case SaveVote:
			n.vote = op.vote
		case SaveCommitted:
			n.committed = op.id
		case TruncateLog:
			n.disk = n.disk[: op.first-2 : op.first-2]
		case AppendInputEntries:
			n.disk = append(n.disk[:op.first-2:op.first-2], op.entries...)
		}
		if op.io != (IOID{}) {
			io = op.io
		}
	}
	n.ops = n.ops[k:]
	if io != (IOID{}) {
		s.feed(i, &Flushed{IO: io}, nil)
	}
}

// exStep is a step from a state to the next.
type exStep struct {
	name string
	node int
	ev   Event // that is delivered, duplicated or dropped
	do   func(s *exState)
}

func (x exStep) String() string {
	if x.ev == nil {
		return fmt.Sprint(x.name, " ", x.node+1)
	}
	return fmt.Sprintf("%s %s%+v to %d", x.name, reflect.TypeOf(x.ev).Elem().Name(), x.ev, x.node+1)
}

// steps lists what may happen next.
func (s *exState) steps(first MembershipAt, change *Membership) []exStep {
	out := make([]exStep, 0, 3*len(s.msgs)+8*len(s.nodes))
	add := func(name string, i int, do func(s *exState)) {
		out = append(out, exStep{name, i, nil, do})
	}
	for k := range s.msgs {
		m := s.msgs[k]
		i := int(m.to.Node) - 1
		add := func(name string, i int, do func(s *exState)) {
			out = append(out, exStep{name, i, m.ev, do})
		}
		deliver := func(s *exState) { s.feed(i, m.ev, m.body) }
		add("deliver", i, func(s *exState) { s.msgs = slices.Delete(s.msgs, k, k+1); deliver(s) })
		if s.left.dups > 0 {
			add("duplicate", i, func(s *exState) { s.left.dups--; deliver(s) })
		}
		if s.left.drops > 0 {
			add("drop", i, func(s *exState) { s.left.drops--; s.msgs = slices.Delete(s.msgs, k, k+1) })
		}
	}
	for i := range s.nodes {
		n := &s.nodes[i]
		if len(n.ops) > 0 {
			add("flush all", i, func(s *exState) { s.flush(i, len(s.nodes[i].ops)) })
			if len(n.ops) > 1 {
				add("flush one", i, func(s *exState) { s.flush(i, 1) })
			}
		}
		if n.apply[1] != 0 {
			add("apply", i, func(s *exState) { s.applyOne(i) })
		}
		if s.left.timeouts > 0 && n.eng.Deadline() != 0 {
			add("time-out", i, func(s *exState) {
				s.left.timeouts--
				s.now = max(s.now, s.nodes[i].eng.Deadline())
				s.feed(i, &Tick{}, nil)
			})
		}
		if s.left.crashes > 0 {
			add("crash", i, func(s *exState) { s.left.crashes--; s.boot(i, first) })
		}
		if n.eng.lead != nil && s.left.writes > 0 {
			add("write", i, func(s *exState) { s.left.writes--; s.feed(i, &Write{Token: 1, Count: 1, Bytes: 1}, nil) })
		}
		if n.eng.lead != nil && s.left.changes > 0 && change != nil {
			add("change", i, func(s *exState) { s.left.changes--; s.feed(i, &ChangeMembership{Token: 2, Target: *change}, nil) })
		}
	}
	return out
}

func (s *exState) applyOne(i int) {
	n := &s.nodes[i]
	last := n.apply[1]
	n.apply = [2]uint64{}
	n.applied = last
	s.feed(i, &Applied{LogID: LogID{n.log[last-2].term, last}}, nil)
}

// check returns what is wrong, and brings the ghosts up to date.
func (s *exState) check(before *exState) error {
	for i := range s.nodes {
		n := &s.nodes[i]
		st := n.eng.Status()
		if b := &before.nodes[i]; b.life == n.life {
			was := b.eng.Status()
			if st.Vote.Term < was.Vote.Term || st.Committed.Index < was.Committed.Index || st.Applied.Index < was.Applied.Index {
				return fmt.Errorf("%v went back: %+v after %+v", n.self, st, was)
			}
		}
		if st.Last.Index != uint64(len(n.log))+1 || st.Applied.Index > st.Committed.Index {
			return fmt.Errorf("%v: %+v with %d entries", n.self, st, len(n.log))
		}
		for at := uint64(2); at <= n.applied; at++ { // what is applied is durable, and chosen
			if at > uint64(len(n.disk))+1 || n.disk[at-2].data != n.log[at-2].data {
				return fmt.Errorf("%v has applied %d, which is not durable", n.self, at)
			}
		}
		if n.eng.lead != nil {
			if err := s.checkLeader(n, &st); err != nil {
				return err
			}
		}
		for at := uint64(2); at <= st.Committed.Index && at-2 < uint64(len(s.chosen)); at++ {
			if c := s.chosen[at-2]; c.data != n.log[at-2].data {
				return fmt.Errorf("%v has committed %+v at %d, chosen was %+v", n.self, n.log[at-2], at, c)
			}
		}
		for j := range i { // log matching
			o := &s.nodes[j]
			for k := min(len(o.log), len(n.log)) - 1; k >= 0; k-- {
				if o.log[k].term != n.log[k].term {
					continue
				}
				for ; k >= 0; k-- {
					if o.log[k].data != n.log[k].data {
						return fmt.Errorf("%v and %v differ at %d below a match", n.self, o.self, k+2)
					}
				}
			}
		}
	}
	return nil
}

func (s *exState) checkLeader(n *exNode, st *Status) error {
	me := office{st.Vote.Term, n.life, n.self.Node}
	known := false
	for _, o := range s.leaders {
		if o.term == me.term {
			if o != me {
				return fmt.Errorf("two leaders of term %d: %+v and %+v", me.term, o, me)
			}
			known = true
		}
	}
	if !known {
		s.leaders = append(s.leaders, me)
		for k, c := range s.chosen {
			if s.by[k] < me.term && (k >= len(n.log) || n.log[k].data != c.data) {
				return fmt.Errorf("%v leads term %d without %+v, chosen at %d", n.self, me.term, c, k+2)
			}
		}
	}
	for at := uint64(len(s.chosen)) + 2; at <= st.Committed.Index; at++ {
		s.chosen, s.by = append(s.chosen, n.log[at-2]), append(s.by, me.term)
		last := st.Committed.Index
		if !hasQuorum(n.eng.memb.Membership, func(p Peer) bool {
			d := s.nodes[p.Node-1].disk
			return uint64(len(d))+2 > last && d[last-2].data == n.log[last-2].data
		}) {
			return fmt.Errorf("%v commits %d, which is not durable on a quorum", n.self, last)
		}
	}
	s.acked = max(s.acked, n.applied)
	if n.eng.LeaseValid(s.now) && n.applied < s.acked {
		return fmt.Errorf("%v may read by lease at %d, acknowledged is %d", n.self, n.applied, s.acked)
	}
	return nil
}

// hash is of all that decides what can happen next; of times only whether they have come.
func (s *exState) hash() uint64 {
	b := make([]byte, 0, 1024)
	u := func(v ...uint64) {
		for _, x := range v {
			b = binary.AppendUvarint(b, x)
		}
	}
	flag := func(v bool) {
		if v {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	vote := func(v Vote) { u(v.Term, uint64(v.Peer.Node)); flag(v.Committed) }
	b = append(b, byte(s.left.timeouts), byte(s.left.drops), byte(s.left.dups), byte(s.left.crashes), byte(s.left.writes), byte(s.left.changes))
	for i := range s.nodes {
		n, e := &s.nodes[i], s.nodes[i].eng
		u(n.life, n.applied, n.apply[0], n.apply[1], uint64(len(n.disk)), uint64(len(n.log)), uint64(len(n.ops)), n.committed.Index)
		vote(n.vote)
		for _, x := range n.disk {
			u(x.data)
		}
		for _, x := range n.log {
			u(x.data)
		}
		for _, op := range n.ops {
			u(uint64(op.kind), op.first, uint64(len(op.entries)), op.io.Last.Term, op.io.Last.Index)
			vote(op.vote)
		}
		vote(e.vote)
		u(uint64(e.role), uint64(e.Leader().Node), e.committed.Index, e.applied.Index, e.applyTo, e.announced, e.verified, e.io.flushed, e.memb.LogID.Index, e.previous().LogID.Index,
			uint64(len(e.io.held)))
		for _, h := range e.io.held {
			u(h.after-e.io.flushedSeq(), uint64(h.kind), uint64(h.flag), h.match.Index, h.seq, h.stream, uint64(h.to.Node))
		}
		flag(e.bound())
		flag(s.now >= e.Deadline())
		if e.race != nil {
			flag(e.race.sent)
			for _, p := range e.race.granted {
				u(uint64(p.Node))
			}
		}
		if e.lead != nil {
			u(e.lead.blank, e.lead.stream)
			flag(e.LeaseValid(s.now))
			for k := range e.lead.followers {
				f := &e.lead.followers[k]
				u(uint64(f.peer.Node), uint64(f.state), f.match, f.next, f.stream, f.seq, f.acked, f.round)
				flag(f.waiting)
			}
		}
	}
	for i := range s.msgs {
		b = binary.LittleEndian.AppendUint64(b, s.msgs[i].hash)
	}
	u(uint64(len(s.leaders)), uint64(len(s.chosen)), s.acked)
	for i, c := range s.chosen {
		u(c.data, s.by[i])
	}
	return xxhash.Sum64(b)
}

// explorer visits states breadth first: each is expanded once, and the first that is wrong is reached on a shortest way.
type explorer struct {
	t      *testing.T
	seen   map[uint64]struct{}
	first  MembershipAt
	change *Membership
	most   int
	steps  int
	leads  int
	chosen int
	// dropped: not all states of the next layer were kept. Each state that is expanded brings a new one at least, on average three, so the bound
	// on states ends it before it comes to those.
	dropped bool
}

// exReached is a state that is to be expanded, and the way to it.
type exReached struct {
	state *exState
	way   *exWay
}

type exWay struct {
	before *exWay
	step   exStep
}

// explore visits what can be reached from s within the bounds. It returns up to which depth it has visited everything.
func (x *explorer) explore(s *exState, depthMax int) int {
	x.seen[s.hash()] = struct{}{}
	layer := []exReached{{state: s}}
	for depth := 1; depth <= depthMax && len(layer) > 0; depth++ {
		var next []exReached
		partial := x.dropped
		for i := range layer {
			if len(x.seen) >= x.most {
				return depth - 1
			}
			next = x.expand(layer[i], next)
			layer[i].state = nil
		}
		if partial {
			return depth - 1
		}
		layer = next
	}
	return depthMax
}

// expand appends the states one step from r that are new.
func (x *explorer) expand(r exReached, next []exReached) []exReached {
	for _, step := range r.state.steps(x.first, x.change) {
		s := r.state.clone()
		step.do(s)
		x.steps++
		way := &exWay{r.way, exStep{name: step.name, node: step.node, ev: step.ev}}
		if err := s.check(r.state); err != nil {
			way.log(x.t)
			x.t.Fatal(err)
		}
		h := s.hash()
		if _, ok := x.seen[h]; ok {
			continue
		}
		x.seen[h] = struct{}{}
		x.leads, x.chosen = max(x.leads, len(s.leaders)), max(x.chosen, len(s.chosen))
		if len(next) < x.most-len(x.seen) {
			next = append(next, exReached{s, way})
		} else {
			x.dropped = true
		}
	}
	return next
}

func (w *exWay) log(t *testing.T) {
	if w.before != nil {
		w.before.log(t)
	}
	t.Logf("- %s", w.step)
}

// settle runs s on without faults until nothing is on its way: the starting points are made so.
func (s *exState) settle(t *testing.T, reach func(ev Event, to Peer) bool) {
	for range 1000 {
		again := false
		for i := range s.nodes {
			for len(s.nodes[i].ops) > 0 {
				s.flush(i, len(s.nodes[i].ops))
				again = true
			}
			if s.nodes[i].apply[1] != 0 {
				s.applyOne(i)
				again = true
			}
		}
		msgs := s.msgs
		s.msgs = nil
		for _, m := range msgs {
			again = true
			if reach == nil || reach(m.ev, m.to) {
				s.feed(int(m.to.Node)-1, m.ev, m.body)
			}
		}
		if !again {
			return
		}
	}
	t.Fatal("does not settle")
}

func exFrom(ev Event) Peer {
	switch m := ev.(type) {
	case *AppendRequest:
		return m.From
	case *AppendResponse:
		return m.From
	case *Heartbeat:
		return m.From
	case *HeartbeatResponse:
		return m.From
	case *VoteRequest:
		return m.From
	case *VoteResponse:
		return m.From
	case *TimeoutNow:
		return m.From
	}
	return Peer{}
}

// small makes all engines send so few entries in a message.
func (s *exState) small(n int) {
	for i := range s.nodes {
		e := s.touch(i).eng
		cfg := *e.cfg
		cfg.EntriesPerMessage = n
		e.cfg = &cfg
	}
}

// lead makes node i the leader, with the help of those that it can reach.
func (s *exState) lead(t *testing.T, i int, reach func(ev Event, to Peer) bool) {
	s.settle(t, reach)
	for range 5 {
		s.now += 3 * exT
		s.feed(i, &Campaign{}, nil)
		s.settle(t, reach)
		if s.nodes[i].eng.lead != nil {
			return
		}
	}
	t.Fatalf("node %d does not win", i+1)
}

func TestExplore(t *testing.T) {
	without := func(n NodeID) func(ev Event, to Peer) bool {
		return func(ev Event, to Peer) bool { return exFrom(ev).Node != n && to.Node != n }
	}
	nobody := func(Event, Peer) bool { return false }
	votes := func(ev Event, _ Peer) bool {
		switch ev.(type) {
		case *VoteRequest, *VoteResponse:
			return true
		}
		return false
	}
	type start struct {
		name   string
		nodes  int
		left   budget
		change *Membership
		make   func(s *exState)
	}
	write := func(s *exState, i int) { s.feed(i, &Write{Token: 1, Count: 1, Bytes: 1}, nil) }
	next := &Membership{Voters: [][]Peer{{exPeer(1), exPeer(2), exPeer(3)}}}
	starts := []start{
		// The 10 steps that lose a committed entry if older terms are committed by counting lie within the bound of figure 8.
		{"a first election", 3, budget{timeouts: 3, drops: 1, dups: 1, crashes: 1, writes: 1}, nil, func(*exState) {}},
		{"a leader with work", 3, budget{timeouts: 2, drops: 1, dups: 1, crashes: 1, writes: 2}, nil, func(s *exState) {
			s.lead(t, 0, nil)
			write(s, 0)
		}},
		{"two leaders, the older cut off with entries of its own", 3, budget{timeouts: 2, dups: 1, crashes: 1, writes: 1}, nil, func(s *exState) {
			s.lead(t, 0, nil)
			write(s, 0)
			s.settle(t, without(1))
			s.lead(t, 1, without(1))
			write(s, 1)
		}},
		{"an entry of an older term on two of three (figure 8)", 3, budget{timeouts: 2, writes: 1}, nil, func(s *exState) {
			s.small(1)
			s.lead(t, 0, nil)
			write(s, 0) // node 1 alone has it
			s.settle(t, nobody)
			s.lead(t, 2, votes) // node 3 alone has its blank entry
			s.feed(0, &Resign{}, nil)
			s.settle(t, nobody)
			s.lead(t, 0, func(ev Event, to Peer) bool { return to.Node != 3 && exFrom(ev).Node != 3 && votes(ev, to) })
			s.now += exT / 5
			s.feed(0, &Tick{}, nil)
			s.settle(t, func(ev Event, to Peer) bool { // node 1's entry of the older term comes to node 2, and no other
				m, ok := ev.(*AppendRequest)
				return to.Node == 1 && exFrom(ev).Node == 2 || to.Node == 2 && ok && (len(m.Runs) == 0 || m.Runs[0].Last <= 3)
			})
			if len(s.nodes[1].log) != 2 || s.nodes[1].log[1].term != 1 {
				for i := range s.nodes {
					t.Logf("%+v %+v", s.nodes[i].log, s.nodes[i].eng.Status())
				}
				t.Fatalf("not figure 8")
			}
			s.msgs = nil
			s.now += 3 * exT
			s.feed(2, &Resign{}, nil)
			s.settle(t, nobody)
		}},
		{"a change from {1,2,3} to {2,3,4}", 4, budget{timeouts: 2, dups: 1, crashes: 1, changes: 1, writes: 1}, next, func(s *exState) {
			s.lead(t, 0, nil)
			learner := Membership{Voters: [][]Peer{{exPeer(0), exPeer(1), exPeer(2)}}, Learners: []Peer{exPeer(3)}}
			s.feed(0, &ChangeMembership{Token: 1, Target: learner}, nil)
			s.settle(t, nil)
			s.feed(0, &ChangeMembership{Token: 2, Target: *next}, nil)
		}},
	}
	if testing.Short() {
		*exploreStates = min(*exploreStates, 10_000)
	}
	total, steps := 0, 0
	for _, st := range starts {
		s := newExState(st.nodes, 3, st.left)
		first := s.nodes[0].eng.memb
		st.make(s)
		s.left = st.left
		if err := s.check(s.clone()); err != nil {
			t.Fatalf("%s: %v", st.name, err)
		}
		x := &explorer{t: t, first: first, change: st.change, seen: map[uint64]struct{}{}, most: *exploreStates}
		depth := x.explore(s, *exploreDepth)
		t.Logf("%s: %d states, all up to depth %d, %d steps, up to %d terms led and %d entries chosen", st.name, len(x.seen), depth, x.steps, x.leads, x.chosen)
		total += len(x.seen)
		steps += x.steps
	}
	t.Logf("%d distinct states, %d steps", total, steps)
	if total < 3**exploreStates {
		t.Errorf("only %d states: the bounds are too narrow", total)
	}
}
