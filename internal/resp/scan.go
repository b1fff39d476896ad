package resp

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/shard"
)

// cursors turns keys into the numbers that SCAN has for positions: hashes, so that the same position has the same number.
type cursors struct {
	mu    sync.Mutex
	byNum map[uint64]cursor
}

type cursor struct {
	key  []byte
	used time.Time
}

// The bounds of the cursors of a node: over cursorsMax the older half is forgotten.
const (
	cursorsMax = 65536
	cursorTTL  = 10 * time.Minute
)

func newCursors() *cursors { return &cursors{byNum: map[uint64]cursor{}} }

// put returns the number of a key, which is not 0 and no larger than clients with signed integers can take.
func (s *cursors) put(key []byte) uint64 {
	n := xxhash.Sum64(key) >> 1
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if c, ok := s.byNum[n]; n != 0 && (!ok || bytes.Equal(c.key, key)) {
			break
		}
		n = (n*0x9e3779b97f4a7c15 + 1) >> 1
	}
	if len(s.byNum) >= cursorsMax {
		s.evict(now)
	}
	s.byNum[n] = cursor{bytes.Clone(key), now}
	return n
}

// evict forgets what is too old, else an arbitrary half.
func (s *cursors) evict(now time.Time) {
	for n, c := range s.byNum {
		if now.Sub(c.used) > cursorTTL {
			delete(s.byNum, n)
		}
	}
	for n := range s.byNum {
		if len(s.byNum) < cursorsMax/2 {
			return
		}
		delete(s.byNum, n)
	}
}

func (s *cursors) get(n uint64) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.byNum[n]
	if !ok || time.Since(c.used) > cursorTTL {
		return nil, false
	}
	return c.key, true
}

// scanPage reads one page.
func (c *conn) scanPage(ctx context.Context, q *shard.Scan) (*shard.Page, error) {
	return await(func(done func(*shard.Page, error)) { c.s.cfg.KV.GoScan(ctx, q, done) })
}

// after returns the end of the keys that begin with prefix, empty for plus infinity.
func after(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for len(end) > 0 {
		if end[len(end)-1]++; end[len(end)-1] != 0 {
			return end
		}
		end = end[:len(end)-1]
	}
	return nil
}

func cmdScan(c *conn, a [][]byte, o *out) {
	pattern, count, none := []byte(nil), int64(10), false
	cur, ok := parseInt(a[1])
	if !ok || cur < 0 {
		o.err(errCursor)
		return
	}
	for i := 2; i < len(a); i += 2 {
		switch {
		case i+1 == len(a):
			o.err(errSyntax)
			return
		case is(a[i], "MATCH"):
			pattern = a[i+1]
		case is(a[i], "COUNT"):
			if count, ok = parseInt(a[i+1]); !ok {
				o.err(errNotInteger)
				return
			}
			if count < 1 {
				o.err(errSyntax)
				return
			}
		case is(a[i], "TYPE"):
			none = !is(a[i+1], "string")
		default:
			o.err(errSyntax)
			return
		}
	}
	prefix := globPrefix(pattern)
	start, end := prefix, after(prefix)
	if cur != 0 {
		if start, ok = c.s.cursors.get(uint64(cur)); !ok {
			o.err(errCursor)
			return
		}
	}
	if bytes.Compare(start, prefix) < 0 {
		start = prefix // somebody else's cursor
	}
	if !c.mayRange(prefix, end) {
		o.err(errNoPermRange)
		return
	}
	p, err := c.scanPage(c.context(), &shard.Scan{Start: start, End: end, Limit: int(min(count, shard.ScanLimitMax)), KeysOnly: true})
	if err != nil {
		o.err(errorText(err))
		return
	}
	var list [][]byte
	for i := range p.Entries {
		if !none && (pattern == nil || globMatch(pattern, p.Entries[i].Key)) {
			list = append(list, p.Entries[i].Key)
		}
	}
	o.array(2)
	if p.Done || len(end) > 0 && bytes.Compare(p.CompleteTo, end) >= 0 {
		o.str("0")
	} else {
		o.str(itoa(c.s.cursors.put(p.CompleteTo)))
	}
	o.array(len(list))
	for _, k := range list {
		o.bulk(k)
	}
}

// The bounds of KEYS.
const (
	keysMax      = 100_000
	keysBytesMax = 32 << 20
)

func cmdKeys(c *conn, a [][]byte, o *out) {
	pattern := a[1]
	prefix := globPrefix(pattern)
	q := shard.Scan{Start: prefix, End: after(prefix), Limit: shard.ScanLimitMax, KeysOnly: true}
	if !c.mayRange(q.Start, q.End) {
		o.err(errNoPermRange)
		return
	}
	var list [][]byte
	size := 0
	ctx := c.context()
	for {
		p, err := c.scanPage(ctx, &q)
		if err != nil {
			o.err(errorText(err))
			return
		}
		for i := range p.Entries {
			if k := p.Entries[i].Key; globMatch(pattern, k) {
				list = append(list, k)
				size += len(k)
			}
		}
		if len(list) > keysMax || size > keysBytesMax {
			o.err("ERR KEYS has more than 100000 answers: use SCAN")
			return
		}
		if p.Done || len(q.End) > 0 && bytes.Compare(p.CompleteTo, q.End) >= 0 {
			break
		}
		q.Start = p.CompleteTo
	}
	o.array(len(list))
	for _, k := range list {
		o.bulk(k)
	}
}

// dbsizeTime is how long DBSIZE counts.
const dbsizeTime = time.Second

func cmdDBSize(c *conn, _ [][]byte, o *out) {
	if !c.mayRange(nil, nil) {
		o.err(errNoPermRange)
		return
	}
	began, ctx := time.Now(), c.context()
	q := shard.Scan{Limit: shard.ScanLimitMax, KeysOnly: true}
	n, shards := int64(0), int64(0)
	for {
		p, err := c.scanPage(ctx, &q)
		if err != nil {
			o.err(errorText(err))
			return
		}
		n += int64(len(p.Entries))
		if len(p.Entries) < q.Limit {
			shards++ // a page ends with its shard, or when it is full
		}
		if p.Done {
			break
		}
		if time.Since(began) > dbsizeTime {
			if all := int64(c.s.cfg.KV.Map().Len()); shards > 0 && shards < all {
				n = n / shards * all
			}
			break
		}
		q.Start = p.CompleteTo
	}
	o.int(n)
}

// cmdRange is KR.RANGE.
func cmdRange(c *conn, a [][]byte, o *out) {
	q := shard.Scan{Start: a[1], End: a[2]}
	limit := int64(100)
	for i := 3; i < len(a); i++ {
		switch {
		case is(a[i], "REV"):
			q.Reverse = true
		case is(a[i], "KEYS"):
			q.KeysOnly = true
		case is(a[i], "LIMIT") && i+1 < len(a):
			var ok bool
			if limit, ok = parseInt(a[i+1]); !ok || limit < 1 {
				o.err(errNotInteger)
				return
			}
			i++
		default:
			o.err(errSyntax)
			return
		}
	}
	limit = min(limit, shard.ScanLimitMax)
	if !c.mayRange(q.Start, q.End) {
		o.err(errNoPermRange)
		return
	}
	var list []shard.Entry
	var next []byte
	size, ctx := 0, c.context()
	for {
		q.Limit = int(limit) - len(list)
		p, err := c.scanPage(ctx, &q)
		if err != nil {
			o.err(errorText(err))
			return
		}
		for i := range p.Entries {
			list = append(list, p.Entries[i])
			size += len(p.Entries[i].Key) + len(p.Entries[i].Value)
		}
		if p.Done {
			next = nil
			break
		}
		next = p.CompleteTo
		if q.Reverse {
			q.End = next
		} else {
			q.Start = next
		}
		if len(list) >= int(limit) || size > shard.AnswerBytesMax {
			break
		}
	}
	o.array(2)
	if next == nil {
		o.null()
	} else {
		o.bulk(next)
	}
	per := 2
	if q.KeysOnly {
		per = 1
	}
	o.array(per * len(list))
	for i := range list {
		o.bulk(list[i].Key)
		if !q.KeysOnly {
			o.bulk(list[i].Value)
		}
	}
}

func (o *out) route(r *router.Route) {
	o.pairs(6)
	o.str("shard")
	o.int(int64(r.Desc.Shard))
	o.str("start")
	o.bulk(r.Start)
	o.str("end")
	o.bulk(r.End)
	o.str("version")
	o.int(int64(r.Desc.Version))
	o.str("leader")
	o.int(int64(r.Leader))
	o.str("nodes")
	o.array(len(r.Desc.Replicas))
	for i := range r.Desc.Replicas {
		o.int(int64(r.Desc.Replicas[i].Node))
	}
}

func cmdShard(c *conn, a [][]byte, o *out) {
	r, ok := c.s.cfg.KV.Map().Lookup(a[1])
	if !ok {
		o.null()
		return
	}
	o.route(&r)
}

func cmdShards(c *conn, a [][]byte, o *out) {
	from, limit := []byte(nil), int64(1000)
	if len(a) > 1 {
		from = a[1]
	}
	if len(a) > 2 {
		var ok bool
		if limit, ok = parseInt(a[2]); !ok || limit < 1 || limit > 10_000 {
			o.err(errNotInteger)
			return
		}
	}
	if err := c.s.cfg.KV.LoadMap(c.context()); err != nil {
		o.err(errorText(err))
		return
	}
	routes, _ := c.s.cfg.KV.Map().Page(from, int(limit))
	o.array(len(routes))
	for i := range routes {
		o.route(&routes[i])
	}
}

// directCAS is KR.CAS.
func directCAS(r *request, ctx context.Context) bool {
	a := r.args
	bad := func(text string) bool {
		o := out{resp3: r.resp3}
		o.err(text)
		r.finish(o.b)
		return true
	}
	cond, rest := shard.Condition{Key: a[1]}, a[3:]
	switch {
	case is(a[2], "ABSENT"):
		cond.Kind = shard.ConditionAbsent
	case is(a[2], "VALUE") && len(rest) > 1:
		cond.Kind, cond.Value, rest = shard.ConditionValue, rest[0], rest[1:]
	case is(a[2], "VERSION") && len(rest) > 1:
		n, ok := parseInt(rest[0])
		if !ok || n < 0 {
			return bad(errNotInteger)
		}
		cond.Kind, cond.Version, rest = shard.ConditionVersion, uint64(n), rest[1:]
	default:
		return bad(errSyntax)
	}
	opt, errText := parseSet("kr.cas", rest[1:], false)
	if errText == "" && (opt.nx || opt.xx || opt.get || opt.keepTTL) {
		errText = errSyntax
	}
	if errText != "" {
		return bad(errText)
	}
	s := newSingleWrite(shard.Op{Kind: shard.OpPut, Key: a[1], Value: rest[0], Expire: opt.expire})
	s.cond[0] = cond
	s.w.Conditions = s.cond[:]
	r.c.s.cfg.KV.GoWrite(ctx, &s.w, func(res *shard.Result, err error) {
		switch {
		case err == nil:
			o := out{}
			o.int(int64(res.Version))
			r.finish(o.b)
		case isConditionFailed(err):
			r.finish(r.null())
		default:
			r.fail(err)
		}
	})
	return true
}
