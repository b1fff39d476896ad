package resp

import "strconv"

// out collects a reply in the form of the connection's protocol.
type out struct {
	b     []byte
	resp3 bool

	r    *request // whose reply it is, if it may be long
	owed int      // bytes that are not reserved yet
	over bool     // it became too long for the connection: b is of no use
}

// owedMax is how much of a reply is not reserved.
const owedMax = 16 << 10

// room tells whether n more bytes fit.
func (o *out) room(n int) bool {
	if o.owed += n; o.r != nil && o.owed > owedMax && !o.over {
		o.over = !o.r.reserve(o.owed)
		o.owed = 0
	}
	return !o.over
}

// again begins the reply anew.
func (o *out) again() { o.b, o.owed, o.over = o.b[:0], 0, false }

func (o *out) line(kind byte, s string) {
	o.b = append(append(append(o.b, kind), s...), '\r', '\n')
}

func (o *out) number(kind byte, n int64) {
	o.b = append(strconv.AppendInt(append(o.b, kind), n, 10), '\r', '\n')
}

// simple is a status, such as OK.
func (o *out) simple(s string) { o.line('+', s) }

func (o *out) ok() { o.simple("OK") }

// err is an error; its first word is the code.
func (o *out) err(s string) {
	o.b = append(o.b, '-')
	for i := range len(s) { // a client's bytes may be in it
		c := s[i]
		if c == '\r' || c == '\n' {
			c = ' '
		}
		o.b = append(o.b, c)
	}
	o.b = append(o.b, '\r', '\n')
}

func (o *out) int(n int64) { o.number(':', n) }

func (o *out) bool(b bool) {
	if b {
		o.int(1)
	} else {
		o.int(0)
	}
}

func (o *out) bulk(v []byte) {
	if !o.room(len(v)) {
		return
	}
	o.number('$', int64(len(v)))
	o.b = append(append(o.b, v...), '\r', '\n')
}

func (o *out) str(s string) {
	o.number('$', int64(len(s)))
	o.b = append(append(o.b, s...), '\r', '\n')
}

// verbatim is text for people.
func (o *out) verbatim(s string) {
	if !o.resp3 {
		o.str(s)
		return
	}
	o.number('=', int64(len(s)+4))
	o.b = append(append(append(o.b, "txt:"...), s...), '\r', '\n')
}

func (o *out) null() {
	if o.resp3 {
		o.b = append(o.b, "_\r\n"...)
	} else {
		o.b = append(o.b, "$-1\r\n"...)
	}
}

func (o *out) nullArray() {
	if o.resp3 {
		o.b = append(o.b, "_\r\n"...)
	} else {
		o.b = append(o.b, "*-1\r\n"...)
	}
}

func (o *out) array(n int) { o.number('*', int64(n)) }

// set is an array in RESP2.
func (o *out) set(n int) {
	if o.resp3 {
		o.number('~', int64(n))
	} else {
		o.array(n)
	}
}

// pairs starts a map of n pairs, an array of twice as many in RESP2.
func (o *out) pairs(n int) {
	if o.resp3 {
		o.number('%', int64(n))
	} else {
		o.array(2 * n)
	}
}

func (o *out) strings(list ...string) {
	o.array(len(list))
	for _, s := range list {
		o.str(s)
	}
}
