package sim

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// opsMax is after how many operations of a run the clients take their time: what is rare does not come from their number.
const opsMax = 3000

// The keys of a shard: registers, a counter, a pair that is always written together, and noise that only the replicas compare.
const registers = 3

func key(id engine.ShardID, name string) []byte { return fmt.Appendf(nil, "s%05d/%s", id, name) }

// session is what a client keeps of its writes' names (rule Cluster2). Two clients may share one.
type session struct {
	id   shard.SessionID
	seq  uint64
	open map[uint64]bool
}

func (x *session) lowest() uint64 {
	low := x.seq
	for q := range x.open {
		low = min(low, q)
	}
	return low
}

// client does one thing after the other.
type client struct {
	s       *sim
	id      int
	session *session
	hints   map[engine.ShardID]engine.NodeID
	// routes are the shards of each group, as far as this client has heard.
	routes  map[engine.ShardID][]*shard.Descriptor
	version map[string]uint64 // of keys, as last read
	call    *call
	n       int
}

// call is one operation, with all its attempts.
type call struct {
	id       engine.ShardID    // the group
	to       *shard.Descriptor // as the client thinks
	began    engine.Instant    // of this page, for a scan
	entries  []shard.Entry     // found so far by a scan
	kind     scheduler.Kind
	write    shard.Write
	read     shard.Read
	scan     shard.Scan
	op       *op // for the history; nil for noise
	op2      *op // of a write of two registers, which may be in different shards
	session  *session
	seq      uint64
	attempt  int
	tried    int // attempts whose answer never came, or said nothing
	deadline engine.Instant
	done     func(err error, answer []byte)
}

func newClient(s *sim, i int) *client {
	c := &client{s: s, id: i, hints: map[engine.ShardID]engine.NodeID{}, routes: map[engine.ShardID][]*shard.Descriptor{}, version: map[string]uint64{}}
	if i%3 == 2 {
		c.session = s.clients[i-1].session // two clients of one front
	} else {
		c.renew(0)
	}
	s.c.After(between(s.rng, 0, 100*time.Millisecond), c.next)
	return c
}

func (c *client) renew(shardTime int64) {
	issued := max(shardTime, 1_700_000_000_000+int64(c.s.c.Now())/1e6)
	if shardTime == 0 && c.s.rng.IntN(6) == 0 {
		issued -= shard.SessionHorizon.Milliseconds() - c.s.rng.Int64N(20_000) // it will be forgotten soon (rule Cluster2)
	}
	c.session = &session{id: shard.NewSessionID(issued, c.s.rng.Uint64()), open: map[uint64]bool{}}
}

func (c *client) value() []byte {
	c.n++
	v := fmt.Appendf(nil, "%d.%d", c.id, c.n)
	if c.s.rng.IntN(8) == 0 {
		v = append(v, bytes.Repeat([]byte{'.'}, c.s.rng.IntN(c.s.knobs.valueMax))...)
	}
	return v
}

// next begins the next operation.
func (c *client) next() {
	s := c.s
	if s.stopping {
		return
	}
	r := s.rng
	id := s.groups[r.IntN(len(s.groups))]
	if r.IntN(3) > 0 { // some are busy
		id = s.groups[r.IntN(min(3, len(s.groups)))]
	}
	k := &call{id: id, began: s.c.Now(), kind: scheduler.KindWrite, deadline: s.c.Now() + engine.Instant(between(r, time.Second, 12*time.Second))}
	reg := key(id, "r"+strconv.Itoa(r.IntN(registers)))
	switch p := r.IntN(100); {
	case p < 28:
		c.get(k, reg)
	case p < 32:
		c.get(k, key(id, "counter"))
	case p < 37:
		c.scanAll(k)
	case p < 42:
		c.getPair(k)
	case p < 57:
		v := c.value()
		k.write.Ops = []shard.Op{{Kind: shard.OpPut, Key: reg, Value: v}}
		c.recordWrite(k, opPut, reg, v)
	case p < 60:
		c.putTwo(k)
	case p < 65:
		k.write.Ops = []shard.Op{{Kind: shard.OpDelete, Key: reg}}
		c.recordWrite(k, opDelete, reg, nil)
	case p < 75:
		v := c.value()
		k.write.Ops = []shard.Op{{Kind: shard.OpPut, Key: reg, Value: v}}
		ver := c.version[string(reg)]
		k.write.Conditions = []shard.Condition{{Kind: shard.ConditionVersion, Key: reg, Version: ver}}
		c.recordWrite(k, opCAS, reg, v)
		k.op.version = ver
	case p < 85:
		counter := key(id, "counter")
		k.write.Ops = []shard.Op{{Kind: shard.OpAdd, Key: counter, Delta: 1}}
		c.recordWrite(k, opAdd, counter, nil)
	case p < 92:
		v := c.value()
		k.write.Ops = []shard.Op{{Kind: shard.OpPut, Key: key(id, "pair/a"), Value: v}, {Kind: shard.OpPut, Key: key(id, "pair/b"), Value: v}}
	default:
		c.noise(k)
	}
	if k.kind == scheduler.KindWrite && (r.IntN(5) > 0 || k.write.Ops[0].Kind == shard.OpAdd && r.IntN(10) > 0) {
		k.session = c.session
		k.session.seq++
		k.seq = k.session.seq
		k.session.open[k.seq] = true
	}
	c.call = k
	c.try(k)
}

func (c *client) noise(k *call) {
	r := c.s.rng
	name := key(k.id, "x/"+strconv.Itoa(r.IntN(40)))
	switch r.IntN(4) {
	case 0:
		k.write.Ops = []shard.Op{{Kind: shard.OpDeleteRange, Key: name, End: key(k.id, "x0"), Limit: uint64(1 + r.IntN(20))}}
	case 1:
		k.write.Ops = []shard.Op{{Kind: shard.OpPut, Key: name, Value: c.value(), Expire: -int64(1 + r.IntN(3000))}}
	case 2:
		k.kind = scheduler.KindRead
		k.read.Keys = [][]byte{name}
		k.done = func(error, []byte) {}
	default:
		k.write.Ops = []shard.Op{{Kind: shard.OpPut, Key: name, Value: bytes.Repeat([]byte{'n'}, r.IntN(c.s.knobs.valueMax))}}
	}
}

// putTwo writes two registers at once. If they are in different shards it is refused, and then it has had no effect, ever.
func (c *client) putTwo(k *call) {
	a := c.s.rng.IntN(registers)
	b := (a + 1 + c.s.rng.IntN(registers-1)) % registers
	v := c.value()
	for _, i := range []int{a, b} {
		k.write.Ops = append(k.write.Ops, shard.Op{Kind: shard.OpPut, Key: key(k.id, "r"+strconv.Itoa(i)), Value: v})
	}
	c.recordWrite(k, opPut, k.write.Ops[1].Key, v)
	second, done := k.op, k.done
	c.recordWrite(k, opPut, k.write.Ops[0].Key, v)
	first := k.done
	k.op2 = second
	k.done = func(err error, b []byte) {
		o := k.op
		k.op = second
		done(err, b)
		k.op = o
		first(err, b)
	}
}

func (c *client) recordWrite(k *call, kind opKind, name, value []byte) {
	k.op = &op{client: c.id, kind: kind, key: string(name), value: string(value), call: c.s.c.Now(), ret: math.MaxInt64, unknown: true}
	k.done = func(err error, b []byte) {
		var res shard.Result
		if err != nil {
			return
		}
		if err := shard.DecodeResult(b, &res); err != nil {
			c.s.fail("unreadable result: %w", err)
		}
		o := k.op
		o.unknown, o.ret, o.outVersion, o.replayed = false, c.s.c.Now(), res.Version, res.Replayed
		switch res.Outcome {
		case shard.OutcomeApplied:
			o.applied = true
			if kind == opAdd {
				o.sum = res.Values[0]
			}
		case shard.OutcomeConditionFailed:
		default:
			c.s.fail("outcome %d", res.Outcome)
		}
		if res.Replayed {
			c.s.happened("answered from the table")
		}
		c.version[o.key] = res.Version
		if kind == opDelete {
			c.version[o.key] = 0
		}
	}
}

func (c *client) get(k *call, name []byte) {
	k.kind = scheduler.KindRead
	k.read.Keys = [][]byte{name}
	k.op = &op{client: c.id, kind: opGet, key: string(name), call: c.s.c.Now()}
	k.done = func(err error, b []byte) {
		if err != nil {
			return
		}
		e, err := shard.DecodeAnswer(b, k.read.Keys, nil)
		if err != nil || len(e) != 1 {
			c.s.fail("unreadable answer: %v", err)
		}
		c.got(k.op, e[0])
	}
}

func (c *client) got(o *op, e shard.Entry) {
	o.ret, o.outVersion, o.value, o.found = c.s.c.Now(), e.Version, string(e.Value), e.Exists()
	c.version[o.key] = e.Version
}

func (c *client) getPair(k *call) {
	k.kind = scheduler.KindRead
	k.read.Keys = [][]byte{key(k.id, "pair/a"), key(k.id, "pair/b")}
	k.done = func(err error, b []byte) {
		if err != nil {
			return
		}
		e, err := shard.DecodeAnswer(b, k.read.Keys, nil)
		if err != nil || len(e) != 2 || string(e[0].Value) != string(e[1].Value) || e[0].Version != e[1].Version {
			c.s.fail("shard %d: a pair was read in parts: %+v %v", k.id, e, err)
		}
	}
}

// scanAll reads a whole group, page by page: each page shows its range at one moment.
func (c *client) scanAll(k *call) {
	k.kind = scheduler.KindScan
	k.scan.Start, k.scan.End = groupRange(k.id)
	k.scan.Reverse = c.s.rng.IntN(4) == 0
	k.scan.Limit = pick(c.s.rng, 0, 0, 3, 7)
}

// scanned takes a page, and tells whether the scan is done.
func (c *client) scanned(k *call, b []byte) bool {
	var page shard.Page
	if err := shard.DecodePage(b, &page); err != nil {
		c.s.fail("unreadable page: %w", err)
	}
	lo, hi := k.scan.Start, k.scan.End
	switch {
	case page.Done:
	case k.scan.Reverse:
		lo = bytes.Clone(page.CompleteTo)
	default:
		hi = bytes.Clone(page.CompleteTo)
	}
	found := map[string]shard.Entry{}
	for _, e := range page.Entries {
		e.Key, e.Value = bytes.Clone(e.Key), bytes.Clone(e.Value)
		if n := len(k.entries); bytes.Compare(e.Key, lo) < 0 || bytes.Compare(e.Key, hi) >= 0 ||
			n > 0 && (bytes.Compare(k.entries[n-1].Key, e.Key) >= 0) != k.scan.Reverse ||
			n > 0 && bytes.Equal(k.entries[n-1].Key, e.Key) {
			c.s.fail("group %d: %q in a page for [%q, %q), after %d others", k.id, e.Key, lo, hi, n)
		}
		found[string(e.Key)] = e
		k.entries = append(k.entries, e)
	}
	within := func(key []byte) bool { return bytes.Compare(key, lo) >= 0 && bytes.Compare(key, hi) < 0 }
	ka, kb := key(k.id, "pair/a"), key(k.id, "pair/b")
	if a, b := found[string(ka)], found[string(kb)]; within(ka) && within(kb) && (string(a.Value) != string(b.Value) || a.Version != b.Version) {
		c.s.fail("group %d: a pair was scanned in parts: %+v %+v", k.id, a, b)
	}
	c.sawRegisters(k, found, within)
	c.s.happened("scan")
	if page.Done {
		c.sawAll(k)
		return true
	}
	c.s.happened("scan goes on")
	if k.scan.Reverse {
		k.scan.End = lo
	} else {
		k.scan.Start = hi
	}
	k.began = c.s.c.Now()
	return false
}

// sawRegisters takes what a page shows of the registers and the counter.
func (c *client) sawRegisters(k *call, found map[string]shard.Entry, within func([]byte) bool) {
	names := []string{"counter"}
	for i := range registers {
		names = append(names, "r"+strconv.Itoa(i))
	}
	for _, name := range names {
		o := &op{client: c.id, kind: opGet, key: string(key(k.id, name)), call: k.began}
		if within([]byte(o.key)) {
			c.got(o, found[o.key])
			c.s.add(o)
		}
	}
}

// sawAll requires that a scan has found the keys that never change: each of them, once.
func (c *client) sawAll(k *call) {
	n := 0
	for _, e := range k.entries {
		if bytes.HasPrefix(e.Key, key(k.id, "fix/")) {
			n++
			if !bytes.Equal(e.Key, e.Value) {
				c.s.fail("group %d: %q holds %q", k.id, e.Key, e.Value)
			}
		}
	}
	if n != fixedKeys {
		c.s.fail("group %d: a scan has found %d of %d keys", k.id, n, fixedKeys)
	}
}

// try makes one attempt.
func (c *client) try(k *call) {
	s := c.s
	k.attempt++
	attempt := k.attempt
	k.to = c.route(k)
	to := k.to.Shard
	n := s.randomNode()
	if h := c.hints[to]; h != 0 && s.rng.IntN(10) > 0 {
		n = s.c.Node(h)
	} else if l := s.leader(to); l != nil && s.rng.IntN(3) == 0 {
		n = l
	}
	patience := between(s.rng, s.knobs.electionTimeout/2, 3*s.knobs.electionTimeout)
	s.c.After(patience, func() {
		if c.call == k && k.attempt == attempt {
			k.tried++
			delete(c.hints, to)
			s.happened("client loses patience")
			c.retry(k, 0)
		}
	})
	req := &scheduler.Request{Kind: k.kind, Shard: to, Body: c.body(k)}
	s.c.After(between(s.rng, 10*time.Microsecond, 200*time.Microsecond), func() {
		if !n.Up {
			s.c.After(time.Millisecond, func() { c.refused(k, attempt, n.ID, shard.ErrShardNotFound) })
			return
		}
		life := n.Life()
		req.Done = func(req *scheduler.Request) {
			if n.Life() != life {
				return
			}
			err, answer := req.Err, bytes.Clone(req.Answer)
			if s.rng.Float64() < s.knobs.answersLost && !s.settling {
				return
			}
			s.c.After(between(s.rng, 10*time.Microsecond, 200*time.Microsecond), func() {
				if err != nil {
					c.refused(k, attempt, n.ID, err)
				} else {
					c.answered(k, attempt, n.ID, answer)
				}
			})
		}
		n.Submit(req)
	})
}

func (c *client) body(k *call) []byte {
	switch k.kind {
	case scheduler.KindRead:
		k.read.Shard, k.read.Version = k.to.Shard, k.to.Version
		return shard.AppendRead(nil, &k.read)
	case scheduler.KindScan:
		k.scan.Shard, k.scan.Version = k.to.Shard, k.to.Version
		return shard.AppendScan(nil, &k.scan)
	}
	k.write.Shard, k.write.Version = k.to.Shard, k.to.Version
	if k.session != nil {
		k.write.Session, k.write.Seq, k.write.Lowest = k.session.id, k.seq, k.session.lowest()
	}
	return shard.AppendWrite(nil, &k.write)
}

func (c *client) answered(k *call, attempt int, from engine.NodeID, answer []byte) {
	// An answer to an earlier attempt is as good: the sequence number says that it is the same write. Without one it is that
	// attempt's answer, and there was none after it.
	if c.call != k {
		return
	}
	c.hints[k.to.Shard] = from
	if k.kind == scheduler.KindScan {
		if k.attempt != attempt { // of an earlier page, maybe
			return
		}
		if !c.scanned(k, answer) {
			k.attempt++
			c.try(k)
			return
		}
	}
	c.finish(k, nil, answer)
}

func (c *client) refused(k *call, attempt int, from engine.NodeID, err error) {
	s := c.s
	if errors.Is(err, shard.ErrAmbiguous) {
		s.happened("ambiguous")
	}
	if c.call != k || k.attempt != attempt {
		return
	}
	if s.opt.Trace {
		s.tracef("client %d: %v node %d: %v", c.id, k.to, from, err)
	}
	delete(c.hints, k.to.Shard)
	var nl *shard.NotLeaderError
	var se *shard.SessionExpiredError
	var moved *shard.MovedError
	switch {
	case errors.As(err, &nl):
		if nl.Leader != 0 {
			c.hints[k.to.Shard] = nl.Leader
		}
		c.retry(k, time.Millisecond)
	case errors.As(err, &moved):
		c.moved(k, moved)
	case errors.Is(err, shard.ErrUnavailable), errors.Is(err, shard.ErrOverloaded), errors.Is(err, shard.ErrShardNotFound):
		if errors.Is(err, shard.ErrShardNotFound) && s.rng.IntN(4) == 0 {
			delete(c.routes, k.id)
		}
		c.retry(k, 20*time.Millisecond)
	case errors.As(err, &se):
		s.happened("session expired")
		if se.Reused {
			s.fail("shard %d: session of client %d, sequence %d: %w", k.id, c.id, k.seq, err)
		}
		if k.session == c.session {
			c.renew(se.ShardTime)
		}
		if k.tried > 0 {
			c.finish(k, err, nil) // only a retry is ambiguous
			return
		}
		delete(k.session.open, k.seq)
		k.session = c.session
		k.session.seq++
		k.seq = k.session.seq
		k.session.open[k.seq] = true
		c.retry(k, time.Millisecond)
	case errors.Is(err, shard.ErrAmbiguous):
		k.tried++
		c.retry(k, time.Millisecond)
	default:
		s.fail("shard %d, node %d: client %d: %w", k.id, from, c.id, err)
	}
}

// retry tries again after a while. What may have happened is tried again under the same sequence number, or given up.
func (c *client) retry(k *call, d time.Duration) {
	s := c.s
	k.attempt++ // what comes of the last one is of no interest
	if k.tried > 0 && k.kind == scheduler.KindWrite && k.session == nil || s.c.Now() > k.deadline && !s.settling {
		c.finish(k, shard.ErrAmbiguous, nil)
		return
	}
	s.c.After(d+between(s.rng, 0, 10*time.Millisecond), func() {
		if c.call == k {
			c.try(k)
		}
	})
}

func (c *client) finish(k *call, err error, answer []byte) {
	s := c.s
	if k.session != nil {
		delete(k.session.open, k.seq)
	}
	if k.done != nil {
		k.done(err, answer)
	}
	if s.opt.Trace {
		if k.op != nil {
			s.tracef("client %d: %s: %v", c.id, k.op, err)
		} else {
			s.tracef("client %d: shard %d %+v: %v", c.id, k.id, k.write.Ops, err)
		}
	}
	if k.op != nil && (err == nil || k.kind == scheduler.KindWrite && k.tried > 0) {
		s.add(k.op)
		if k.op2 != nil {
			s.add(k.op2)
		}
	}
	c.call = nil
	think := s.knobs.think
	if len(s.history.ops) > opsMax {
		think *= 20
	}
	s.c.After(time.Duration(s.rng.ExpFloat64()*float64(think)), c.next)
}

func (s *sim) clientsDone() bool {
	for _, c := range s.clients {
		if c.call != nil {
			return false
		}
	}
	return true
}

func (s *sim) waiting() string {
	for _, c := range s.clients {
		if c.call != nil {
			s.report(c.call.id)
			return fmt.Sprintf("client %d, shard %d, attempt %d, %v %+v %+v %+v", c.id, c.call.id, c.call.attempt, c.call.op, c.call.write, c.call.read, c.call.scan)
		}
	}
	return ""
}
