package resp

import (
	"math"
	"strings"
	"time"
)

func nowMs() int64 { return time.Now().UnixMilli() }

func evalDel(v *view, a [][]byte, o *out) {
	n := int64(0)
	for _, k := range a[1:] {
		if v.del(k) {
			n++
		}
	}
	o.int(n)
}

// evalExists counts a key as often as it is named. It is TOUCH too.
func evalExists(v *view, a [][]byte, o *out) {
	n := int64(0)
	for _, k := range a[1:] {
		if v.get(k) != nil {
			n++
		}
	}
	o.int(n)
}

func evalType(v *view, a [][]byte, o *out) {
	if v.get(a[1]) == nil {
		o.simple("none")
		return
	}
	o.simple("string")
}

// evalTTL is TTL, PTTL, EXPIRETIME and PEXPIRETIME.
func evalTTL(v *view, a [][]byte, o *out) {
	it := v.get(a[1])
	if it == nil {
		o.int(-2)
		return
	}
	if it.expire == 0 {
		o.int(-1)
		return
	}
	ms := v.deadline(it)
	if len(a[0]) <= len("PTTL") { // TTL and PTTL
		ms = max(ms-v.now, 0)
	}
	if a[0][0] != 'P' && a[0][0] != 'p' {
		ms = (ms + 500) / 1000
	}
	o.int(ms)
}

// evalExpire is EXPIRE, PEXPIRE, EXPIREAT and PEXPIREAT.
func evalExpire(v *view, a [][]byte, o *out) {
	var nx, xx, gt, lt bool
	for _, opt := range a[3:] {
		switch {
		case is(opt, "NX"):
			nx = true
		case is(opt, "XX"):
			xx = true
		case is(opt, "GT"):
			gt = true
		case is(opt, "LT"):
			lt = true
		default:
			o.err("ERR Unsupported option " + string(opt))
			return
		}
	}
	if nx && (xx || gt || lt) {
		o.err("ERR NX and XX, GT or LT options at the same time are not compatible")
		return
	}
	if gt && lt {
		o.err("ERR GT and LT options at the same time are not compatible")
		return
	}
	name := lower(a[0])
	n, ok := parseInt(a[2])
	if !ok {
		o.err(errNotInteger)
		return
	}
	if name[0] == 'e' {
		if n > math.MaxInt64/1000 || n < math.MinInt64/1000 {
			o.err(errExpire(name))
			return
		}
		n *= 1000
	}
	at, expire := n, n
	if !strings.HasSuffix(name, "at") {
		if n > math.MaxInt64-v.now {
			o.err(errExpire(name))
			return
		}
		at, expire = n+v.now, -n
	}
	it := v.get(a[1])
	if it == nil {
		o.int(0)
		return
	}
	has, old := it.expire != 0, v.deadline(it)
	if nx && has || xx && !has || gt && (!has || at <= old) || lt && has && at >= old {
		o.int(0)
		return
	}
	if at <= v.now {
		v.del(a[1])
	} else {
		v.set(a[1], it.value, expire)
	}
	o.int(1)
}

func evalPersist(v *view, a [][]byte, o *out) {
	it := v.get(a[1])
	if it == nil || it.expire == 0 {
		o.int(0)
		return
	}
	v.set(a[1], it.value, 0)
	o.int(1)
}

// evalRename is RENAME and RENAMENX.
func evalRename(v *view, a [][]byte, o *out) {
	nx := is(a[0], "RENAMENX")
	it := v.get(a[1])
	if it == nil {
		o.err(errNoKey)
		return
	}
	same := string(a[1]) == string(a[2])
	if nx && v.get(a[2]) != nil {
		o.int(0)
		return
	}
	if !same {
		value, expire := it.value, it.expire
		v.del(a[1])
		v.set(a[2], value, expire)
	}
	if nx {
		o.int(1)
	} else {
		o.ok()
	}
}

// evalObject is OBJECT ENCODING, REFCOUNT, IDLETIME and FREQ; what nobody counts here is 0.
func evalObject(v *view, a [][]byte, o *out) {
	if len(a) != 3 {
		o.err(errSubcommand(a, "OBJECT"))
		return
	}
	it := v.get(a[2])
	switch {
	case it == nil:
		o.null()
	case is(a[1], "ENCODING"):
		o.str(encoding(it.value))
	case is(a[1], "REFCOUNT"):
		o.int(1)
	case is(a[1], "IDLETIME"), is(a[1], "FREQ"):
		o.int(0)
	default:
		o.err(errSubcommand(a, "OBJECT"))
	}
}

func encoding(value []byte) string {
	if _, ok := parseInt(value); ok {
		return "int"
	}
	if len(value) <= 44 {
		return "embstr"
	}
	return "raw"
}

func errSubcommand(a [][]byte, name string) string {
	return "ERR unknown subcommand or wrong number of arguments for '" + clip(string(a[1]), 128) + "'. Try " + name + " HELP."
}

func clip(s string, n int) string { return s[:min(len(s), n)] }

// evalMemory is MEMORY USAGE.
func evalMemory(v *view, a [][]byte, o *out) {
	if !is(a[1], "USAGE") || len(a) < 3 {
		o.err(errSubcommand(a, "MEMORY"))
		return
	}
	it := v.get(a[2])
	if it == nil {
		o.null()
		return
	}
	o.int(int64(len(it.key) + len(it.value) + 64))
}

// evalKRGet answers the value and the version.
func evalKRGet(v *view, a [][]byte, o *out) {
	it := v.get(a[1])
	if it == nil {
		o.nullArray()
		return
	}
	o.array(2)
	o.bulk(it.value)
	o.int(int64(it.version))
}
