package resp

import (
	"context"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/shard"
)

// transaction is what was queued since MULTI.
type transaction struct {
	queue []queued
	bytes int
	bad   bool // a command was refused: EXEC will be too
}

type queued struct {
	spec *spec
	args [][]byte
}

// The bounds of a transaction.
const (
	multiCommandsMax = 4096
	multiBytesMax    = 16 << 20
)

func (c *conn) setMulti(t *transaction) {
	if c.multi != nil {
		c.held.Add(-int64(c.multi.bytes))
	}
	c.multi = t
	c.mu.Lock()
	c.inMulti = t != nil
	c.mu.Unlock()
}

// enqueue takes a command between MULTI and EXEC.
func (c *conn) enqueue(sp *spec, args [][]byte) {
	size, t := sizeOf(args), c.multi
	switch {
	case sp.eval == nil && !sp.multi:
		c.refuse(errNotInMulti)
	case len(t.queue) == multiCommandsMax || t.bytes+size > multiBytesMax:
		c.refuse("ERR transaction too large")
	default:
		t.queue = append(t.queue, queued{sp, args})
		t.bytes += size
		c.held.Add(int64(size))
		o := c.out()
		o.simple("QUEUED")
		c.replyNow(o)
	}
}

func cmdMulti(c *conn, _ *spec, _ [][]byte) {
	if c.multi != nil {
		c.replyErr("ERR MULTI calls can not be nested")
		return
	}
	c.setMulti(&transaction{})
	c.replyOK()
}

func (c *conn) replyOK() {
	o := c.out()
	o.ok()
	c.replyNow(o)
}

func cmdDiscard(c *conn, _ *spec, _ [][]byte) {
	if c.multi == nil {
		c.replyErr("ERR DISCARD without MULTI")
		return
	}
	c.setMulti(nil)
	c.watched = nil
	c.replyOK()
}

// cmdUnwatch has no connection in a transaction: EXEC has forgotten what was watched by then.
func cmdUnwatch(c *conn, _ [][]byte, o *out) {
	if c != nil {
		c.watched = nil
	}
	o.ok()
}

// watchedMax bounds the keys that a connection watches.
const watchedMax = 1000

// cmdWatch remembers the versions of keys.
func cmdWatch(c *conn, _ *spec, a [][]byte) {
	if c.multi != nil {
		c.replyErr("ERR WATCH inside MULTI is not allowed")
		return
	}
	for _, k := range a[1:] {
		if !c.who.Access().Key(auth.NeedRead, k) {
			c.replyErr(errNoPermKeys)
			return
		}
	}
	c.drain()
	if len(c.watched)+len(a) > watchedMax {
		c.replyErr("ERR too many watched keys")
		return
	}
	entries, err := await(func(done func([]shard.Entry, error)) { readKeys(c.context(), c.s.cfg.KV, a[1:], nil, done) })
	if err != nil {
		c.replyErr(errorText(err))
		return
	}
	if c.watched == nil {
		c.watched = map[string]uint64{}
	}
	for i := range entries {
		if _, ok := c.watched[string(a[1+i])]; !ok {
			c.watched[string(a[1+i])] = entries[i].Version
		}
	}
	c.replyOK()
}

// await waits for a callback.
func await[T any](start func(done func(T, error))) (T, error) {
	type answer struct {
		v   T
		err error
	}
	ch := make(chan answer, 1)
	start(func(v T, err error) { ch <- answer{v, err} })
	a := <-ch
	return a.v, a.err
}

func cmdExec(c *conn, sp *spec, a [][]byte) {
	t, watched := c.multi, c.watched
	if t == nil {
		c.replyErr("ERR EXEC without MULTI")
		return
	}
	c.setMulti(nil)
	c.watched = nil
	for _, q := range t.queue { // rights may have been taken since
		t.bad = t.bad || c.permit(q.spec, q.args) != ""
	}
	for k := range watched {
		t.bad = t.bad || !c.who.Access().Key(auth.NeedRead, []byte(k))
	}
	if t.bad {
		c.replyErr(errExecAbort)
		return
	}
	var keys [][]byte
	for _, q := range t.queue {
		keys = append(keys, q.spec.keysOf(q.args)...)
	}
	for k := range watched {
		keys = append(keys, []byte(k))
	}
	keys = dedup(keys)
	r := &request{c: c, spec: &spec{name: sp.name, write: true}, args: a, resp3: c.resp3, silent: c.silent(), keys: keys, size: t.bytes}
	ctx := c.context()
	r.start = func(r *request) { r.exec(ctx, t, watched) }
	c.submit(r)
}

// exec evaluates the commands of a transaction on one view of all their keys.
func (r *request) exec(ctx context.Context, t *transaction, watched map[string]uint64) {
	o := &out{resp3: r.resp3, r: r}
	eval := func(v *view) bool {
		for k, version := range watched {
			if v.find([]byte(k)).version != version {
				o.nullArray()
				return false
			}
		}
		o.array(len(t.queue))
		for _, q := range t.queue {
			if q.spec.eval != nil {
				q.spec.eval(v, q.args, o)
			} else {
				q.spec.local(nil, q.args, o)
			}
		}
		return true
	}
	x := &step{r: r, ctx: ctx, keys: r.keys, eval: eval, o: o}
	if len(r.keys) == 0 {
		x.evaluate(nil, 0)
		return
	}
	x.start()
}

func cmdReset(c *conn, _ *spec, _ [][]byte) {
	c.setMulti(nil)
	c.drain()
	c.watched, c.resp3, c.replyOff, c.replySkip = nil, false, false, 0
	c.become(c.greeted)
	c.mu.Lock()
	c.name, c.proto = "", 2
	c.mu.Unlock()
	o := c.out()
	o.simple("RESET")
	c.replyNow(o)
}

func cmdQuit(c *conn, _ *spec, _ [][]byte) {
	c.replyOK()
	c.quit = true
}
