package resp

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
)

// protocolError ends a connection, after its text.
type protocolError string

func (e protocolError) Error() string { return "Protocol error: " + string(e) }

// parseLimits bound one request.
type parseLimits struct {
	args         int
	bulkBytes    int
	requestBytes int
	// stranger: the connection has not authenticated yet; only the text of the error differs.
	stranger bool
}

var (
	// limitsFull are those of a connection that may do everything. Values over shard.ValueBytesMax get an answer, not a hang-up.
	limitsFull = parseLimits{args: 1 << 16, bulkBytes: 16 << 20, requestBytes: 32 << 20}
	// limitsStranger are those before authentication.
	limitsStranger = parseLimits{args: 10, bulkBytes: 16 << 10, requestBytes: 64 << 10, stranger: true}
)

const (
	lineBytesMax   = 64 << 10 // of an inline request, or of the text of a length
	readBufferSize = 8 << 10
	arenaSize      = 16 << 10
	argsAtOnce     = 64 // room for so many arguments is made before they have arrived
)

// parser reads requests from a connection. The arguments that it returns stay valid for as long as somebody holds them: they lie in
// chunks of memory that are not used again.
type parser struct {
	src    io.Reader
	limits parseLimits
	// beforeRead is called before every read of src, which may block.
	beforeRead func()
	// hold, if set, is told how many bytes more, or less, the request at hand takes.
	hold func(n int)

	// admit, if set, is asked before a request is read that may take n bytes, bigRequest or more. It may block.
	admit func(n int) error

	held    int // what hold was told
	pending int // and what not yet

	buf   []byte
	r, w  int // buf[r:w] is unread
	arena []byte

	admitted bool // the request at hand may take what it announces
}

// next returns the next request, which has at least one argument.
func (p *parser) next() ([][]byte, error) {
	for {
		line, err := p.line("too big inline request")
		if err != nil {
			return nil, err
		}
		var args [][]byte
		if len(line) > 0 && line[0] == '*' {
			args, err = p.multibulk(line[1:])
		} else {
			args, err = p.inline(line)
		}
		if err != nil || len(args) > 0 {
			return args, err
		}
	}
}

// line returns the next line without its end. It is valid until the next call.
func (p *parser) line(tooBig protocolError) ([]byte, error) {
	for from := p.r; ; {
		if i := bytes.IndexByte(p.buf[from:p.w], '\n'); i >= 0 {
			line := p.buf[p.r : from+i]
			p.r = from + i + 1
			return bytes.TrimSuffix(line, []byte{'\r'}), nil
		}
		seen := p.w - p.r
		if seen > lineBytesMax {
			if p.buf[p.r] == '*' {
				tooBig = "too big mbulk count string"
			}
			return nil, tooBig
		}
		if err := p.fill(); err != nil {
			return nil, err
		}
		from = p.r + seen
	}
}

// fill reads more input behind what is there.
func (p *parser) fill() error {
	if p.buf == nil {
		p.buf = make([]byte, readBufferSize)
	}
	switch {
	case p.r == p.w:
		p.r, p.w = 0, 0
		if len(p.buf) > readBufferSize {
			p.buf = make([]byte, readBufferSize) // it has grown for a long line
		}
	case p.w == len(p.buf) && p.r > 0:
		p.w = copy(p.buf, p.buf[p.r:p.w])
		p.r = 0
	case p.w == len(p.buf):
		p.buf = append(p.buf, make([]byte, len(p.buf))...)
	}
	n, err := p.read(p.buf[p.w:])
	p.w += n
	return err
}

func (p *parser) read(b []byte) (int, error) {
	if p.beforeRead != nil {
		p.beforeRead()
	}
	n, err := p.src.Read(b)
	if n > 0 {
		return n, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, err
}

func (p *parser) multibulk(count []byte) ([][]byte, error) {
	n, ok := parseInt(count)
	if !ok || n > int64(limitsFull.args) {
		return nil, protocolError("invalid multibulk length")
	}
	if n > int64(p.limits.args) {
		return nil, protocolError("unauthenticated multibulk length")
	}
	if n <= 0 {
		return nil, nil
	}
	args, total := make([][]byte, 0, min(n, argsAtOnce)), 0
	p.admitted = false
	for range n {
		line, err := p.line("too big bulk count string")
		if err != nil {
			return nil, noEOF(err)
		}
		if len(line) == 0 || line[0] != '$' {
			return nil, protocolError(fmt.Sprintf("expected '$', got '%c'", firstByte(line)))
		}
		size, ok := parseInt(line[1:])
		if !ok || size < 0 || size > int64(limitsFull.bulkBytes) {
			return nil, protocolError("invalid bulk length")
		}
		if size > int64(p.limits.bulkBytes) {
			return nil, protocolError("unauthenticated bulk length")
		}
		if total += int(size); total > p.limits.requestBytes {
			return nil, protocolError("too big request")
		}
		if before := total - int(size); before < bigRequest && total >= bigRequest && p.admit != nil {
			if err := p.admit(min(total+(int(n)-len(args)-1)*int(size), limitsFull.requestBytes)); err != nil {
				return nil, err
			}
			p.admitted = true
		}
		arg, err := p.bulk(int(size))
		if err != nil {
			return nil, noEOF(err)
		}
		args = append(args, arg)
	}
	return args, nil
}

// bigRequest is from when on requests are read one after the other, by and large, of all connections.
const bigRequest = 1 << 20

// countStep is how many bytes of a request in small arguments need not be counted.
const countStep = 64 << 10

// count counts bytes of the request at hand, unless there are fewer than least that are not counted yet.
func (p *parser) count(n, least int) {
	if p.pending += n; p.pending >= least && p.hold != nil {
		p.held += p.pending
		p.hold(p.pending)
		p.pending = 0
	}
}

// letGo is called when the request that next has returned has been taken over.
func (p *parser) letGo() {
	if p.pending = 0; p.held > 0 {
		p.hold(-p.held)
		p.held = 0
	}
}

func firstByte(line []byte) byte {
	if len(line) == 0 {
		return '\r'
	}
	return line[0]
}

// noEOF: an end within a request is not an orderly one.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// alloc returns n bytes of the arena.
func (p *parser) alloc(n int) []byte {
	if n > arenaSize/4 {
		return make([]byte, n)
	}
	if len(p.arena) < n {
		p.arena = make([]byte, arenaSize)
	}
	b := p.arena[:n:n]
	p.arena = p.arena[n:]
	return b
}

// bulkStep is how much of a long argument is allocated before its bytes have arrived, unless the request was admitted.
const bulkStep = 64 << 10

// bulk reads an argument and the line end behind it.
func (p *parser) bulk(n int) ([]byte, error) {
	var arg []byte
	switch {
	case n <= bulkStep:
		p.count(n, countStep)
		arg = p.alloc(n)
		if err := p.full(arg); err != nil {
			return nil, err
		}
	case p.admitted:
		p.count(n, 0)
		arg = make([]byte, n)
		if err := p.full(arg); err != nil {
			return nil, err
		}
	default:
		arg = make([]byte, 0, bulkStep)
		p.count(bulkStep, 0)
		for len(arg) < n {
			if len(arg) == cap(arg) {
				grown := make([]byte, len(arg), min(2*cap(arg), n))
				p.count(cap(grown)-cap(arg), 0)
				copy(grown, arg)
				arg = grown
			}
			at := len(arg)
			arg = arg[:min(cap(arg), n)]
			if err := p.full(arg[at:]); err != nil {
				return nil, err
			}
		}
	}
	var end [2]byte // as Redis, which does not look at it
	return arg, p.full(end[:])
}

// full fills b, first with what is buffered. A long rest is read in place.
func (p *parser) full(b []byte) error {
	for len(b) > 0 {
		if p.r < p.w {
			n := copy(b, p.buf[p.r:p.w])
			p.r += n
			b = b[n:]
			continue
		}
		if len(b) < readBufferSize {
			if err := p.fill(); err != nil {
				return err
			}
			continue
		}
		n, err := p.read(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// inline splits a line into arguments as Redis does: at white space, with "…" and '…'.
func (p *parser) inline(line []byte) ([][]byte, error) {
	var args [][]byte
	total := 0
	for i := 0; ; {
		for i < len(line) && isSpace(line[i]) {
			i++
		}
		if i == len(line) {
			break
		}
		arg, n, ok := inlineArg(line[i:])
		if !ok {
			return nil, protocolError("unbalanced quotes in request")
		}
		i += n
		total += len(arg)
		if len(args) == p.limits.args || total > p.limits.requestBytes {
			return nil, protocolError("too big inline request")
		}
		args = append(args, arg)
	}
	return args, nil
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' || c == 0 }

// inlineArg returns the first argument of s and how long it is in s.
func inlineArg(s []byte) (arg []byte, n int, ok bool) {
	arg = []byte{}
	quote := byte(0)
	for n < len(s) {
		c := s[n]
		switch {
		case quote == '"' && c == '\\' && n+3 < len(s) && s[n+1] == 'x' && isHex(s[n+2]) && isHex(s[n+3]):
			v, _ := strconv.ParseUint(string(s[n+2:n+4]), 16, 8)
			arg = append(arg, byte(v))
			n += 4
			continue
		case quote == '"' && c == '\\' && n+1 < len(s):
			arg = append(arg, unescape(s[n+1]))
			n += 2
			continue
		case quote == '\'' && c == '\\' && n+1 < len(s) && s[n+1] == '\'':
			arg = append(arg, '\'')
			n += 2
			continue
		case quote != 0 && c == quote: // the end, and a space must follow
			n++
			return arg, n, n == len(s) || isSpace(s[n])
		case quote != 0:
			arg = append(arg, c)
		case isSpace(c):
			return arg, n, true
		case c == '"' || c == '\'':
			quote = c
		default:
			arg = append(arg, c)
		}
		n++
	}
	return arg, n, quote == 0
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return c
}

// parseInt reads an integer as Redis does, which takes only what it would write itself: no plus sign, no leading zeros or spaces.
func parseInt(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	digits := b
	if b[0] == '-' {
		digits = b[1:]
	}
	if len(digits) == 0 || digits[0] < '0' || digits[0] > '9' || digits[0] == '0' && len(b) > 1 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil
}
