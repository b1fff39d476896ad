package sim

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/kiloraft/kiloraft/engine"
)

type opKind uint8

const (
	opGet opKind = iota
	opPut
	opDelete
	opCAS
	opAdd
)

// op is one operation on one key, as its client saw it.
type op struct {
	client     int
	kind       opKind
	key        string
	value      string // written, or read
	version    uint64 // opCAS: expected
	call, ret  engine.Instant
	unknown    bool // whether and when it happened
	applied    bool
	found      bool
	sum        int64
	outVersion uint64
	replayed   bool
}

func (o *op) String() string {
	name := [...]string{"get", "put", "delete", "cas", "add"}[o.kind]
	v := o.value
	if len(v) > 24 {
		v = v[:24] + "…"
	}
	return fmt.Sprintf("%s %s %q (if %d) = applied %v found %v sum %d version %d, unknown %v", name, o.key, v, o.version, o.applied, o.found, o.sum, o.outVersion, o.unknown)
}

// history is what all clients saw.
type history struct {
	ops     []*op
	unknown int
}

// add takes an operation that is over, or that its client has given up. While clocks run wild a read promises nothing.
func (s *sim) add(o *op) {
	if o.kind != opGet || !s.knobs.wildClocks {
		s.history.add(o)
	}
}

func (h *history) add(o *op) {
	h.ops = append(h.ops, o)
	if o.unknown {
		h.unknown++
	}
}

// register is the state of a key: its value, and its version if some answer told it.
type register struct {
	exists  bool
	value   string
	version uint64 // 0: not known, if it exists
	floor   uint64 // versions of the key only grow
}

// model is a key: porcupine asks it whether an order of the operations explains what the clients saw.
var model = porcupine.Model{
	Init:  func() any { return register{} },
	Equal: func(a, b any) bool { return a == b },
	Step:  func(state, input, _ any) (bool, any) { return input.(*op).step(state.(register)) },
	DescribeOperation: func(input, _ any) string {
		return input.(*op).String()
	},
}

func (o *op) step(r register) (bool, any) {
	switch o.kind {
	case opGet:
		ok := o.found == r.exists && (!r.exists || o.value == r.value && (r.version == 0 && o.outVersion > r.floor || r.version == o.outVersion))
		if ok && r.exists {
			r.version, r.floor = o.outVersion, o.outVersion
		}
		return ok, r
	case opAdd:
		old, _ := strconv.ParseInt(r.value, 10, 64)
		if !o.unknown && (!o.applied || o.sum != old+1) {
			return false, r
		}
		return o.wrote(r, strconv.FormatInt(old+1, 10))
	case opCAS:
		if o.unknown {
			if r.exists && r.version != 0 && r.version != o.version || !r.exists && o.version != 0 || r.exists && o.version == 0 {
				return true, r // it failed
			}
			if r.exists && r.version == 0 && o.version <= r.floor {
				return true, r
			}
			return o.wrote(r, o.value)
		}
		if !o.applied {
			if !r.exists {
				return o.version != 0 && o.outVersion == 0, r
			}
			ok := o.outVersion != o.version && (r.version == o.outVersion || r.version == 0 && o.outVersion > r.floor)
			if ok {
				r.version, r.floor = o.outVersion, o.outVersion
			}
			return ok, r
		}
		if r.exists != (o.version != 0) || r.exists && r.version != o.version && !(r.version == 0 && o.version > r.floor) {
			return false, r
		}
	}
	if !o.unknown && !o.applied {
		return false, r
	}
	return o.wrote(r, o.value)
}

// wrote is the state after o was applied.
func (o *op) wrote(r register, value string) (bool, any) {
	version := o.outVersion
	if o.unknown {
		version = 0
	} else if version <= r.floor {
		return false, r
	}
	next := register{exists: o.kind != opDelete, value: value, version: version, floor: max(r.floor, version)}
	if o.kind == opDelete {
		next.value, next.version = "", 0
	}
	return true, next
}

// verifyTime is what porcupine may take for one key.
const verifyTime = 20 * time.Second

// verify requires that each key is linearizable, and that each counter moved exactly as often as was acknowledged, or up to as often
// as may have happened besides.
func (h *history) verify(s *sim) {
	byKey := map[string][]*op{}
	var keys []string
	for _, o := range h.ops {
		if byKey[o.key] == nil {
			keys = append(keys, o.key)
		}
		byKey[o.key] = append(byKey[o.key], o)
	}
	slices.Sort(keys)
	for _, k := range keys {
		var list []porcupine.Operation
		acked, open, top := int64(0), int64(0), int64(0)
		for i, o := range byKey[k] {
			client := o.client
			if o.unknown {
				client = 1000 + i // its client goes on while it is open
				o.ret = math.MaxInt64
			}
			list = append(list, porcupine.Operation{ClientId: client, Input: o, Call: int64(o.call), Return: int64(o.ret)})
			switch {
			case o.kind == opAdd && o.unknown:
				open++
			case o.kind == opAdd:
				acked++
				top = max(top, o.sum)
			case o.kind == opGet && o.found:
				n, _ := strconv.ParseInt(o.value, 10, 64)
				top = max(top, n)
			}
		}
		if acked > 0 && (top < acked || top > acked+open) {
			s.fail("%s: reached %d with %d acknowledged additions and %d open ones", k, top, acked, open)
		}
		switch porcupine.CheckOperationsTimeout(model, list, verifyTime) {
		case porcupine.Illegal:
			for _, o := range byKey[k] {
				s.tracef("%12.6f to %12.6f client %d %s", float64(o.call-1e9)/1e9, float64(min(o.ret, s.c.Now())-1e9)/1e9, o.client, o)
			}
			s.fail("%s is not linearizable (%d operations)", k, len(list))
		case porcupine.Unknown:
			s.fail("%s: the check of %d operations takes too long", k, len(list))
		}
	}
}
