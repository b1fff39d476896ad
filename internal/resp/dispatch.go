package resp

import (
	"context"
	"strings"
)

// commandNameMax is the length of the longest name.
const commandNameMax = 32

// lookup finds a command without regard to case.
func lookup(name []byte) *spec {
	if len(name) > commandNameMax {
		return nil
	}
	var buf [commandNameMax]byte
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf[i] = c
	}
	return byName[string(buf[:len(name)])]
}

// dispatch takes a request of the client.
func (c *conn) dispatch(args [][]byte) {
	sp := lookup(args[0])
	if sp == nil {
		c.refuse(unknownCommand(args))
		return
	}
	if !sp.arityOK(len(args)) {
		c.refuseArity(sp)
		return
	}
	if text := c.permit(sp, args); text != "" {
		c.refuse(text)
		return
	}
	c.s.stats.calls[sp.index].Add(1)
	c.mu.Lock()
	c.lastCommand = sp.name
	c.mu.Unlock()
	if c.multi != nil && sp.control == nil {
		c.enqueue(sp, args)
		return
	}
	switch {
	case sp.control != nil:
		sp.control(c, sp, args)
	case sp.local != nil:
		o := c.out()
		sp.local(c, args, o)
		c.replyNow(o)
	case sp.block != nil:
		c.drain()
		o := c.out()
		sp.block(c, args, o)
		c.replyNow(o)
	default:
		c.submit(&request{c: c, spec: sp, args: args, resp3: c.resp3, silent: c.silent(), keys: sp.keysOf(args), size: sizeOf(args), start: runData(c.context())})
	}
}

// refuse answers a command that cannot be carried out; a transaction does not survive it.
func (c *conn) refuse(text string) {
	if c.multi != nil {
		c.multi.bad = true
	}
	c.replyErr(text)
}

// refuseArity refuses a command with too few or too many arguments. An EXEC of that kind ends its transaction, as in Redis.
func (c *conn) refuseArity(sp *spec) {
	text := errArity(sp.name)
	if sp.name == "exec" {
		c.setMulti(nil)
		c.watched = nil
		text = "EXECABORT Transaction discarded because of: " + strings.TrimPrefix(text, "ERR ")
	}
	c.refuse(text)
}

func unknownCommand(args [][]byte) string {
	var rest strings.Builder
	for _, a := range args[1:] {
		if rest.Len() >= 128 {
			break
		}
		rest.WriteString("'" + clip(string(a), 128-rest.Len()) + "' ")
	}
	return "ERR unknown command '" + clip(string(args[0]), 128) + "', with args beginning with: " + rest.String()
}

// runData returns how a command on keys starts: directly if it has such a form for these arguments, else by its evaluation.
func runData(ctx context.Context) func(*request) {
	return func(r *request) {
		if r.spec.direct != nil && r.spec.direct(r, ctx) {
			return
		}
		r.evaluate(ctx)
	}
}

// evaluate runs a command as an atomic step on its keys.
func (r *request) evaluate(ctx context.Context) {
	o := &out{resp3: r.resp3, r: r}
	if len(r.keys) == 0 { // a subcommand without a key
		r.spec.eval(&view{now: nowMs()}, r.args, o)
		r.finish(o.b)
		return
	}
	x := &step{r: r, ctx: ctx, keys: dedup(r.keys), o: o}
	x.eval = func(v *view) bool {
		r.spec.eval(v, r.args, o)
		return true
	}
	x.start()
}

func (r *request) fail(err error) {
	o := &out{resp3: r.resp3}
	o.err(errorText(err))
	r.finish(o.b)
}
