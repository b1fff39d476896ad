package router

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// fake is a cluster of three nodes behind a Sender: shards with leaders, one store, one de-duplication table, and faults by script.
type fake struct {
	t  testing.TB
	mu sync.Mutex

	descs   []*shard.Descriptor
	leaders map[engine.ShardID]engine.NodeID
	items   map[string]shard.Entry
	rows    map[row]*done
	expired map[shard.SessionID]bool
	counter uint64
	time    int64
	noInit  bool
	pageMax int
	addr    string // of the nodes

	calls map[api.Method]int
	last  *shard.Write
	// before is asked first: an error is the answer. after is asked when a write was carried out: an error replaces the answer.
	before func(node engine.NodeID, method api.Method) error
	after  func(node engine.NodeID, method api.Method) error
	hold   chan struct{} // if set, answers wait for it
}

type row struct {
	session shard.SessionID
	seq     uint64
}

type done struct {
	fp  uint64
	res shard.Result
	ref error
}

var errLost = &SendError{Sent: true, Err: errors.New("answer lost")}
var errNotSent = &SendError{Err: errors.New("not sent")}

func desc(id engine.ShardID, start, end string, version uint64) *shard.Descriptor {
	d := &shard.Descriptor{Shard: id, Start: []byte(start), End: []byte(end), Version: version, ConfVersion: 1}
	if start == "" {
		d.Start = nil
	}
	if end == "" {
		d.End = nil
	}
	for i := range 3 {
		d.Replicas = append(d.Replicas, shard.ReplicaDesc{Replica: engine.ReplicaID(i + 1), Node: engine.NodeID(i + 1), Role: shard.RoleVoter})
	}
	return d
}

// newFake has the meta shard and user shards split at the given keys, led by nodes 1, 2, 3, 1 …
func newFake(t testing.TB, splits ...string) *fake {
	f := &fake{t: t, leaders: map[engine.ShardID]engine.NodeID{}, items: map[string]shard.Entry{}, rows: map[row]*done{},
		expired: map[shard.SessionID]bool{}, calls: map[api.Method]int{}, time: time.Now().UnixMilli(), pageMax: 3, addr: "node"}
	f.descs = []*shard.Descriptor{desc(shard.MetaShardID, "", "", 1)}
	f.leaders[shard.MetaShardID] = 2
	start := ""
	for i, s := range append(splits, "") {
		id := engine.ShardID(10 + i)
		f.descs = append(f.descs, desc(id, start, s, 1))
		f.leaders[id] = engine.NodeID(1 + i%3)
		start = s
	}
	return f
}

func (f *fake) client(cfg Config) *Client {
	cfg.BackoffMin, cfg.BackoffMax = time.Microsecond, 50*time.Microsecond
	c := New(f, []string{"seed"}, cfg)
	f.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return c
}

// split splits the shard that owns key at key.
func (f *fake) split(key string, child engine.ShardID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, d := range f.descs {
		if i == 0 || !d.Contains([]byte(key)) || string(d.Start) == key {
			continue
		}
		left, right := desc(d.Shard, string(d.Start), key, d.Version+1), desc(child, key, string(d.End), d.Version+1)
		f.descs[i] = left
		f.descs = append(f.descs, right)
		f.leaders[child] = engine.NodeID(1 + int(child)%3)
		return
	}
}

// merge makes the shard left of key absorb the one that starts there.
func (f *fake) merge(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var l, r int
	for i, d := range f.descs[1:] {
		if string(d.End) == key {
			l = i + 1
		}
		if string(d.Start) == key && key != "" {
			r = i + 1
		}
	}
	if l == 0 || r == 0 {
		return
	}
	left, right := f.descs[l], f.descs[r]
	f.descs[l] = desc(left.Shard, string(left.Start), string(right.End), max(left.Version, right.Version)+1)
	f.descs = slices.Delete(f.descs, r, r+1)
}

func (f *fake) Send(node engine.NodeID, addr string, method api.Method, flags uint8, deadline time.Time, body []byte, reply func([]byte, error)) {
	f.mu.Lock()
	f.calls[method]++
	before, hold := f.before, f.hold
	f.mu.Unlock()
	if before != nil {
		if err := before(node, method); err != nil {
			reply(nil, err)
			return
		}
	}
	answer, err := f.serve(node, method, body)
	if err != nil { // as it comes over the wire
		var lost *SendError
		if !errors.As(err, &lost) {
			err = shard.DecodeError(shard.EncodeError(nil, err))
		}
	}
	f.mu.Lock()
	after := f.after
	f.mu.Unlock()
	if after != nil {
		if e := after(node, method); e != nil {
			answer, err = nil, e
		}
	}
	if hold != nil {
		go func() { <-hold; reply(answer, err) }()
		return
	}
	reply(answer, err)
}

func (f *fake) serve(node engine.NodeID, method api.Method, body []byte) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noInit {
		return nil, shard.ErrNotInitialized
	}
	switch method {
	case api.MethodMap:
		var q api.MapRequest
		if err := api.Decode(body, &q); err != nil {
			return nil, err
		}
		return f.mapPage(&q).Append(nil), nil
	case api.MethodWrite:
		var w shard.Write
		if err := shard.DecodeWrite(body, &w); err != nil {
			return nil, err
		}
		return f.write(node, &w)
	case api.MethodRead:
		var q shard.Read
		if err := shard.DecodeRead(body, &q); err != nil {
			return nil, err
		}
		return f.read(node, &q)
	case api.MethodScan:
		var q shard.Scan
		if err := shard.DecodeScan(body, &q); err != nil {
			return nil, err
		}
		return f.scan(node, &q)
	}
	return nil, shard.ErrInvalid
}

func (f *fake) mapPage(q *api.MapRequest) *api.MapPage {
	p := &api.MapPage{Node: 1, Meta: *f.descs[0]}
	for n := engine.NodeID(1); n <= 3; n++ {
		p.Nodes = append(p.Nodes, api.NodeAddr{Node: n, Addr: f.addr})
	}
	sorted := slices.Clone(f.descs[1:])
	slices.SortFunc(sorted, func(a, b *shard.Descriptor) int { return bytes.Compare(a.Start, b.Start) })
	for _, d := range sorted {
		if len(d.End) > 0 && bytes.Compare(d.End, q.From) <= 0 {
			continue
		}
		if len(p.Descriptors) == f.pageMax {
			p.More, p.Next = true, d.Start
			break
		}
		p.Descriptors = append(p.Descriptors, *d)
	}
	return p
}

// find checks that node leads the shard.
func (f *fake) find(node engine.NodeID, id engine.ShardID, stale bool) (*shard.Descriptor, error) {
	for _, d := range f.descs {
		if d.Shard != id {
			continue
		}
		if l := f.leaders[id]; l != node && !stale {
			return nil, &shard.NotLeaderError{Leader: l, Addr: "node"}
		}
		return d, nil
	}
	return nil, shard.ErrShardNotFound
}

func (f *fake) write(node engine.NodeID, w *shard.Write) ([]byte, error) {
	d, err := f.find(node, w.Shard, false)
	if err != nil {
		return nil, err
	}
	if !d.Contains(w.FirstKey()) {
		return nil, &shard.MovedError{Descriptors: []shard.Descriptor{*d}}
	}
	copied := *w
	f.last = &copied
	if w.Session.IsZero() {
		return f.perform(d, w)
	}
	id := row{w.Session, w.Seq}
	if r := f.rows[id]; r != nil {
		if r.fp != w.Fingerprint {
			return nil, &shard.SessionExpiredError{ShardTime: f.time, Reused: true}
		}
		r.res.Replayed = true
		return shard.AppendResult(nil, &r.res), r.ref
	}
	if f.expired[w.Session] || w.Session.Issued() < f.time-shard.SessionHorizon.Milliseconds() {
		return nil, &shard.SessionExpiredError{ShardTime: f.time}
	}
	if w.Seq < w.Lowest || w.Seq-w.Lowest >= shard.SessionWindow {
		f.t.Errorf("sequence %d with lowest %d", w.Seq, w.Lowest)
	}
	b, err := f.perform(d, w)
	r := &done{fp: w.Fingerprint, ref: err}
	if err == nil {
		_ = shard.DecodeResult(b, &r.res)
	}
	f.rows[id] = r
	return b, err
}

func (f *fake) perform(d *shard.Descriptor, w *shard.Write) ([]byte, error) {
	res := shard.Result{}
	for _, o := range w.Ops {
		if !d.Contains(o.Key) || o.Kind == shard.OpDeleteRange && !d.ContainsRange(o.Key, o.End) {
			return nil, &shard.MovedError{Descriptors: []shard.Descriptor{*d}, NotApplied: !w.Session.IsZero()}
		}
	}
	for i, c := range w.Conditions {
		e := f.items[string(c.Key)]
		if c.Kind == shard.ConditionAbsent && e.Exists() || c.Kind == shard.ConditionValue && string(e.Value) != string(c.Value) {
			return shard.AppendResult(nil, &shard.Result{Outcome: shard.OutcomeConditionFailed, Failed: i, Version: e.Version}), nil
		}
	}
	f.counter++
	res.Version = f.counter
	for _, o := range w.Ops {
		switch o.Kind {
		case shard.OpPut:
			f.items[string(o.Key)] = shard.Entry{Key: bytes.Clone(o.Key), Value: bytes.Clone(o.Value), Version: f.counter, Expire: o.Expire}
		case shard.OpDelete:
			delete(f.items, string(o.Key))
		case shard.OpAdd:
			n, _ := strconv.ParseInt(string(f.items[string(o.Key)].Value), 10, 64)
			n += o.Delta
			res.Values = append(res.Values, n)
			f.items[string(o.Key)] = shard.Entry{Key: bytes.Clone(o.Key), Value: strconv.AppendInt(nil, n, 10), Version: f.counter}
		case shard.OpDeleteRange:
			es, more := f.slice(o.Key, o.End, f.pageMax, false)
			for _, e := range es {
				delete(f.items, string(e.Key))
			}
			if res.More = more; more {
				res.Next = append(bytes.Clone(es[len(es)-1].Key), 0)
			}
			res.Values = []int64{int64(len(es))}
		}
	}
	return shard.AppendResult(nil, &res), nil
}

func (f *fake) slice(start, end []byte, limit int, reverse bool) (es []shard.Entry, more bool) {
	for k, e := range f.items {
		if k >= string(start) && (len(end) == 0 || k < string(end)) {
			es = append(es, e)
		}
	}
	slices.SortFunc(es, func(a, b shard.Entry) int { return bytes.Compare(a.Key, b.Key) })
	if reverse {
		slices.Reverse(es)
	}
	if len(es) > limit {
		return es[:limit], true
	}
	return es, false
}

func (f *fake) read(node engine.NodeID, q *shard.Read) ([]byte, error) {
	d, err := f.find(node, q.Shard, q.StaleMs > 0)
	if err != nil {
		return nil, err
	}
	for _, k := range q.Keys {
		if !d.Contains(k) {
			return nil, &shard.MovedError{Descriptors: []shard.Descriptor{*d}}
		}
	}
	n := min(len(q.Keys), f.pageMax)
	b := shard.AppendAnswerHeader(nil, n)
	for _, k := range q.Keys[:n] {
		e := f.items[string(k)]
		b = shard.AppendAnswerEntry(b, e.Version, e.Expire, e.Value)
	}
	return b, nil
}

func (f *fake) scan(node engine.NodeID, q *shard.Scan) ([]byte, error) {
	d, err := f.find(node, q.Shard, q.StaleMs > 0)
	if err != nil {
		return nil, err
	}
	moved := &shard.MovedError{Descriptors: []shard.Descriptor{*d}}
	p := shard.Page{}
	limit := min(q.Limit, f.pageMax)
	if !q.Reverse {
		if !d.Contains(q.Start) {
			return nil, moved
		}
		end := q.End
		if len(d.End) > 0 && (len(end) == 0 || bytes.Compare(d.End, end) < 0) {
			end = d.End
		}
		var more bool
		if p.Entries, more = f.slice(q.Start, end, limit, false); more {
			p.CompleteTo = append(bytes.Clone(p.Entries[len(p.Entries)-1].Key), 0)
		} else if p.Done = d.ContainsRange(q.Start, q.End); !p.Done {
			p.CompleteTo = d.End
		}
		return shard.AppendPage(nil, &p), nil
	}
	if len(q.End) == 0 && len(d.End) > 0 || len(q.End) > 0 && (bytes.Compare(q.End, d.Start) <= 0 || len(d.End) > 0 && bytes.Compare(q.End, d.End) > 0) {
		return nil, moved
	}
	start := q.Start
	if bytes.Compare(start, d.Start) < 0 {
		start = d.Start
	}
	var more bool
	if p.Entries, more = f.slice(start, q.End, limit, true); more {
		p.CompleteTo = p.Entries[len(p.Entries)-1].Key
	} else if p.Done = bytes.Compare(q.Start, d.Start) >= 0; !p.Done {
		p.CompleteTo = d.Start
	}
	return shard.AppendPage(nil, &p), nil
}

func (f *fake) put(keys ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range keys {
		f.counter++
		f.items[k] = shard.Entry{Key: []byte(k), Value: []byte("v" + k), Version: f.counter}
	}
}

func (f *fake) count(m api.Method) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[m]
}

// times returns a fault that happens n times to a method.
func times(n int, method api.Method, err error) func(engine.NodeID, api.Method) error {
	var mu sync.Mutex
	return func(_ engine.NodeID, m api.Method) error {
		mu.Lock()
		defer mu.Unlock()
		if m != method || n == 0 {
			return nil
		}
		if n != math.MaxInt {
			n--
		}
		return err
	}
}
