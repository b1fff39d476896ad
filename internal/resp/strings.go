package resp

import (
	"bytes"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/kiloraft/kiloraft/shard"
)

// evalFunc evaluates a command on a view. a[0] is its name.
type evalFunc func(v *view, a [][]byte, o *out)

// is compares an option without regard to case.
func is(arg []byte, word string) bool {
	return len(arg) == len(word) && strings.EqualFold(string(arg), word)
}

func lower(b []byte) string { return strings.ToLower(string(b)) }

// setOptions are those of SET and GETEX.
type setOptions struct {
	nx, xx, get, keepTTL, persist bool
	timed                         bool
	expire                        int64 // as in shard.Op, if timed
}

// parseSet reads the options behind SET key value, or GETEX key. It returns an error text.
func parseSet(name string, opts [][]byte, getex bool) (s setOptions, errText string) {
	unit, amount := "", []byte(nil)
	for i := 0; i < len(opts); i++ {
		o := opts[i]
		// The same unit again is allowed, and the last one counts.
		timed := s.timed && !is(o, unit) || s.keepTTL || s.persist
		switch {
		case !getex && is(o, "NX") && !s.xx:
			s.nx = true
		case !getex && is(o, "XX") && !s.nx:
			s.xx = true
		case !getex && is(o, "GET"):
			s.get = true
		case !getex && is(o, "KEEPTTL") && !s.timed:
			s.keepTTL = true
		case getex && is(o, "PERSIST") && !s.timed:
			s.persist = true
		case !timed && i+1 < len(opts) && (is(o, "EX") || is(o, "PX") || is(o, "EXAT") || is(o, "PXAT")):
			s.timed = true
			unit, amount = strings.ToUpper(string(o)), opts[i+1]
			i++
		default:
			return s, errSyntax
		}
	}
	if s.timed {
		s.expire, errText = expiry(name, unit, amount)
	}
	return s, errText
}

// expiry turns a positive amount of EX, PX, EXAT or PXAT into what shard.Op wants.
func expiry(name, unit string, amount []byte) (int64, string) {
	n, ok := parseInt(amount)
	if !ok {
		return 0, errNotInteger
	}
	seconds := unit[0] == 'E'
	if n <= 0 || seconds && n > math.MaxInt64/1000 {
		return 0, errExpire(name)
	}
	if seconds {
		n *= 1000
	}
	if strings.HasSuffix(unit, "AT") {
		return n, ""
	}
	if n > math.MaxInt64-nowMs() {
		return 0, errExpire(name)
	}
	return -n, ""
}

// setArgs reads the arguments of SET, SETNX, SETEX, PSETEX and GETSET.
func setArgs(a [][]byte) (key, value []byte, s setOptions, errText string) {
	name := lower(a[0])
	switch name {
	case "setnx":
		return a[1], a[2], setOptions{nx: true}, ""
	case "getset":
		return a[1], a[2], setOptions{get: true}, ""
	case "setex", "psetex":
		unit := "EX"
		if name == "psetex" {
			unit = "PX"
		}
		s.timed = true
		s.expire, errText = expiry(name, unit, a[2])
		return a[1], a[3], s, errText
	}
	s, errText = parseSet(name, a[3:], false)
	return a[1], a[2], s, errText
}

func evalSet(v *view, a [][]byte, o *out) {
	key, value, s, errText := setArgs(a)
	if errText != "" {
		o.err(errText)
		return
	}
	it := v.get(key)
	refused := s.nx && it != nil || s.xx && it == nil
	switch {
	case is(a[0], "SETNX"):
		o.bool(!refused)
	case s.get && it != nil:
		o.bulk(it.value)
	case s.get || refused:
		o.null()
	default:
		o.ok()
	}
	if refused {
		return
	}
	expire := s.expire
	if s.keepTTL && it != nil {
		expire = it.expire
	}
	v.set(key, value, expire)
}

func evalGet(v *view, a [][]byte, o *out) { bulkOrNull(v.get(a[1]), o) }

func bulkOrNull(it *item, o *out) {
	if it == nil {
		o.null()
		return
	}
	o.bulk(it.value)
}

func evalGetDel(v *view, a [][]byte, o *out) {
	bulkOrNull(v.get(a[1]), o)
	v.del(a[1])
}

func evalGetEx(v *view, a [][]byte, o *out) {
	s, errText := parseSet("getex", a[2:], true)
	it := v.get(a[1])
	if errText == errSyntax || errText != "" && it != nil { // a bad time does not matter without a key
		o.err(errText)
		return
	}
	bulkOrNull(it, o)
	switch {
	case it == nil:
	case s.timed:
		v.set(a[1], it.value, s.expire)
	case s.persist && it.expire != 0:
		v.set(a[1], it.value, 0)
	}
}

func evalMGet(v *view, a [][]byte, o *out) {
	o.array(len(a) - 1)
	for _, k := range a[1:] {
		bulkOrNull(v.get(k), o)
	}
}

func evalMSet(v *view, a [][]byte, o *out) {
	if len(a)%2 == 0 {
		o.err(errArity(lower(a[0])))
		return
	}
	nx := is(a[0], "MSETNX")
	for i := 1; nx && i < len(a); i += 2 {
		if v.get(a[i]) != nil {
			o.int(0)
			return
		}
	}
	for i := 1; i < len(a); i += 2 {
		v.set(a[i], a[i+1], 0)
	}
	if nx {
		o.int(1)
	} else {
		o.ok()
	}
}

func evalStrlen(v *view, a [][]byte, o *out) {
	if it := v.get(a[1]); it != nil {
		o.int(int64(len(it.value)))
		return
	}
	o.int(0)
}

func evalAppend(v *view, a [][]byte, o *out) {
	var old []byte
	expire := int64(0)
	if it := v.get(a[1]); it != nil {
		old, expire = it.value, it.expire
	}
	if len(old)+len(a[2]) > shard.ValueBytesMax {
		o.err(errTooLong)
		return
	}
	value := append(old[:len(old):len(old)], a[2]...)
	v.set(a[1], value, expire)
	o.int(int64(len(value)))
}

func evalGetRange(v *view, a [][]byte, o *out) {
	start, ok1 := parseInt(a[2])
	end, ok2 := parseInt(a[3])
	if !ok1 || !ok2 {
		o.err(errNotInteger)
		return
	}
	it := v.get(a[1])
	if it == nil {
		o.str("")
		return
	}
	n := int64(len(it.value))
	if start < 0 && end < 0 && start > end {
		o.str("")
		return
	}
	if start < 0 {
		start = max(start+n, 0)
	}
	if end < 0 {
		end = max(end+n, 0)
	}
	end = min(end, n-1)
	if start > end || n == 0 {
		o.str("")
		return
	}
	o.bulk(it.value[start : end+1])
}

func evalSetRange(v *view, a [][]byte, o *out) {
	at, ok := parseInt(a[2])
	if !ok {
		o.err(errNotInteger)
		return
	}
	if at < 0 {
		o.err(errOffset)
		return
	}
	var old []byte
	expire := int64(0)
	if it := v.get(a[1]); it != nil {
		old, expire = it.value, it.expire
	}
	if len(a[3]) == 0 {
		o.int(int64(len(old)))
		return
	}
	if at > shard.ValueBytesMax || at+int64(len(a[3])) > shard.ValueBytesMax {
		o.err(errTooLong)
		return
	}
	value := make([]byte, max(len(old), int(at)+len(a[3])))
	copy(value, old)
	copy(value[at:], a[3])
	v.set(a[1], value, expire)
	o.int(int64(len(value)))
}

// delta returns what INCR, DECR, INCRBY or DECRBY adds.
func delta(a [][]byte) (int64, string) {
	n := int64(1)
	if len(a) > 2 {
		var ok bool
		if n, ok = parseInt(a[2]); !ok {
			return 0, errNotInteger
		}
	}
	if is(a[0][:1], "D") {
		if n == math.MinInt64 {
			return 0, "ERR decrement would overflow"
		}
		n = -n
	}
	return n, ""
}

func evalIncr(v *view, a [][]byte, o *out) {
	d, errText := delta(a)
	if errText != "" {
		o.err(errText)
		return
	}
	old, expire := int64(0), int64(0)
	if it := v.get(a[1]); it != nil {
		var ok bool
		if old, ok = parseInt(it.value); !ok {
			o.err(errNotInteger)
			return
		}
		expire = it.expire
	}
	if d > 0 && old > math.MaxInt64-d || d < 0 && old < math.MinInt64-d {
		o.err(errOverflow)
		return
	}
	v.set(a[1], strconv.AppendInt(nil, old+d, 10), expire)
	o.int(old + d)
}

// parseFloat reads a decimal number with the precision of an x87 long double, which is what Redis computes with on amd64.
func parseFloat(b []byte) (*big.Float, bool) {
	if len(b) == 0 || len(b) > 512 {
		return nil, false
	}
	mantissa, exp, hasExp := bytes.Cut(bytes.ToLower(b), []byte{'e'})
	if hasExp {
		if n, err := strconv.Atoi(string(exp)); err != nil || n > 4932 || n < -4950 {
			return nil, false
		}
	}
	digits := false
	for i, c := range mantissa {
		switch {
		case c >= '0' && c <= '9':
			digits = true
		case c == '.', i == 0 && (c == '-' || c == '+'):
		default:
			return nil, false
		}
	}
	if !digits {
		return nil, false
	}
	f, _, err := big.ParseFloat(string(b), 10, 64, big.ToNearestEven)
	if err != nil || f.MantExp(nil) > 16384 {
		return nil, false
	}
	return f, true
}

func evalIncrByFloat(v *view, a [][]byte, o *out) {
	old, expire := new(big.Float).SetPrec(64), int64(0)
	if it := v.get(a[1]); it != nil {
		var ok bool
		if old, ok = parseFloat(it.value); !ok {
			o.err(errNotFloat)
			return
		}
		expire = it.expire
	}
	d, ok := parseFloat(a[2])
	if !ok {
		o.err(errNotFloat)
		return
	}
	sum := new(big.Float).SetPrec(64).Add(old, d)
	if sum.MantExp(nil) > 16384 {
		o.err(errNaN)
		return
	}
	text := sum.Text('f', 17)
	text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	if text == "-0" || text == "" || text == "-" {
		text = "0"
	}
	v.set(a[1], []byte(text), expire)
	o.str(text)
}
