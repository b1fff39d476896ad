package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/demo"
	"github.com/kiloraft/kiloraft/internal/escape"
)

// workload is a load whose outcome can be judged: registers that must be linearizable, counters that must be exact, and scans over keys that
// never change, which must all be there, once, in order.
type workload struct {
	t        *testing.T
	kv       client.Cluster
	begin    time.Time
	stopped  chan struct{}
	wg       sync.WaitGroup
	counters *demo.Counters
	fixed    [][]byte // what scans must find
	scans    atomic.Int64

	mu  sync.Mutex
	ops map[string][]porcupine.Operation // guarded by mu
}

const (
	registers  = 6
	registerBy = 3 // clients of each
	// lastingKeys of the registers are one key for the whole test, with little load; the others take a new key every era, so that a history
	// stays short enough to be checked.
	lastingKeys = 2
	era         = 15 * time.Second
	fixedKeys   = 300
)

// startWorkload writes the fixed keys and starts the load. Keys are spread over the whole key space.
func startWorkload(t *testing.T, kv client.Cluster, shards []client.Shard, seed uint64) *workload {
	t.Helper()
	w := &workload{t: t, kv: kv, begin: time.Now(), stopped: make(chan struct{}), ops: map[string][]porcupine.Operation{}}
	for i := range fixedKeys {
		w.fixed = append(w.fixed, fmt.Appendf([]byte{byte(i * 256 / fixedKeys)}, "/fixed/%04d", i))
		if _, err := kv.Put(t.Context(), w.fixed[i], bytes.Repeat([]byte("v"), 1000)); err != nil {
			t.Fatal(err)
		}
	}
	w.counters = demo.StartCounters(t.Context(), kv, shards, "load", 20*time.Millisecond)
	for i := range registers {
		for j := range registerBy {
			rng := rand.New(rand.NewPCG(seed, uint64(100+registerBy*i+j)))
			w.wg.Go(func() { w.register(i, registerBy*i+j, rng) })
		}
	}
	w.wg.Go(w.scanner)
	return w
}

// stop ends the load.
func (w *workload) stop() {
	close(w.stopped)
	w.counters.Stop()
	w.wg.Wait()
}

func (w *workload) over() bool {
	select {
	case <-w.stopped:
		return true
	default:
		return false
	}
}

// registerOp is an operation on a register, whose state is its value; "" if there is none.
type registerOp struct {
	kind          string // get, put, delete, cas
	value, expect string // read or written; expected
	failed        bool   // the expectation of a cas did not hold
	unknown       bool   // whether and when it happened
}

var registerModel = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		s, o := state.(string), input.(*registerOp)
		switch o.kind {
		case "get":
			return o.value == s, s
		case "delete":
			return true, ""
		case "cas":
			switch holds := s == o.expect; {
			case o.unknown && !holds, o.failed:
				return o.unknown || !holds, s
			default:
				return holds, o.value
			}
		}
		return true, o.value
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", *input.(*registerOp)) },
}

// register is a client of register i.
func (w *workload) register(i, id int, rng *rand.Rand) {
	var last string
	for n := 0; !w.over(); n++ {
		age := time.Since(w.begin)
		key, pause, timeout := fmt.Sprintf("%c/register/%d", 'A'+20*i, i), 200*time.Millisecond, 30*time.Second
		if i >= lastingKeys {
			key = fmt.Sprintf("%s/%d", key, age/era)
			pause = 15 * time.Millisecond
			if rng.IntN(10) == 0 {
				timeout = time.Duration(20+rng.IntN(800)) * time.Millisecond
			}
		}
		o := &registerOp{kind: "get"}
		switch p := rng.IntN(100); {
		case p < 30:
			o.kind, o.value = "put", fmt.Sprintf("%d.%d", id, n)
		case p < 45:
			o.kind, o.value, o.expect = "cas", fmt.Sprintf("%d.%d", id, n), last
		case p < 50:
			o.kind = "delete"
		}
		call := time.Since(w.begin)
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		err := w.do(ctx, []byte(key), o)
		cancel()
		ret := time.Since(w.begin)
		switch {
		case err == nil:
			if !o.failed {
				last = o.value
			}
		case errors.Is(err, client.ErrUnknown):
			o.unknown = true
		case errors.Is(err, client.ErrUnavailable):
			o = nil // had no effect
		default:
			w.t.Errorf("%s %s: %v", o.kind, key, err)
			return
		}
		if o != nil {
			w.note(key, id, o, call, ret)
		}
		time.Sleep(pause/2 + rand.N(pause)) // a load, not a synchronization
	}
}

func (w *workload) do(ctx context.Context, key []byte, o *registerOp) error {
	switch o.kind {
	case "put":
		_, err := w.kv.Put(ctx, key, []byte(o.value))
		return err
	case "delete":
		return w.kv.Delete(ctx, key)
	case "cas":
		var expect []byte
		if o.expect != "" {
			expect = []byte(o.expect)
		}
		_, err := w.kv.CompareAndSwap(ctx, key, expect, []byte(o.value))
		if o.failed = errors.Is(err, client.ErrCondition); o.failed {
			return nil
		}
		return err
	}
	it, err := w.kv.Get(ctx, key)
	if errors.Is(err, client.ErrNotFound) {
		return nil
	}
	o.value = string(it.Value)
	return err
}

func (w *workload) note(key string, id int, o *registerOp, call, ret time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.ops[key]
	if o.unknown { // its client goes on while it is open
		if o.kind == "get" {
			return
		}
		id, ret = 1000+len(list), math.MaxInt64
	}
	w.ops[key] = append(list, porcupine.Operation{ClientId: id, Input: o, Call: int64(call), Return: int64(ret)})
}

// scanner scans everything again and again.
func (w *workload) scanner() {
	for !w.over() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		err := w.scan(ctx)
		cancel()
		switch {
		case err == nil:
			w.scans.Add(1)
		case errors.Is(err, client.ErrUnavailable):
		default:
			w.t.Errorf("scan: %v", err)
			return
		}
		time.Sleep(20 * time.Millisecond) // a load, not a synchronization
	}
}

func (w *workload) scan(ctx context.Context) error {
	var last []byte
	found := 0
	for it, err := range w.kv.Scan(ctx, client.Range{}) {
		if err != nil {
			return err
		}
		if last != nil && bytes.Compare(it.Key, last) <= 0 {
			return fmt.Errorf("%s after %s", escape.String(it.Key), escape.String(last))
		}
		last = it.Key
		if !bytes.Contains(it.Key, []byte("/fixed/")) {
			continue
		}
		if found == len(w.fixed) || !bytes.Equal(it.Key, w.fixed[found]) {
			return fmt.Errorf("fixed key number %d is %s", found, escape.String(it.Key))
		}
		found++
	}
	if found != len(w.fixed) {
		return fmt.Errorf("%d of %d fixed keys", found, len(w.fixed))
	}
	return nil
}

// verify judges what the clients saw, after stop.
func (w *workload) verify() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if err := w.counters.Verify(ctx, w.kv); err != nil {
		w.t.Error(err)
	}
	if w.scans.Load() == 0 {
		w.t.Error("no scan came to its end")
	}
	if err := w.scan(ctx); err != nil {
		w.t.Errorf("scan: %v", err)
	}
	total, open := 0, 0
	for key, list := range w.ops {
		total += len(list)
		for _, op := range list {
			if op.Return == math.MaxInt64 {
				open++
			}
		}
		switch porcupine.CheckOperationsTimeout(registerModel, list, time.Minute) {
		case porcupine.Illegal:
			w.t.Errorf("%s is not linearizable (%d operations)", key, len(list))
			for _, op := range list[max(0, len(list)-2000):] {
				w.t.Logf("%v to %v client %d: %+v", time.Duration(op.Call), time.Duration(op.Return), op.ClientId, *op.Input.(*registerOp))
			}
		case porcupine.Unknown:
			w.t.Errorf("%s: the check of %d operations takes too long", key, len(list))
		}
	}
	w.t.Logf("%d registers with %d operations, %d of unknown outcome: linearizable; %d adds, %d unknown: exact; %d scans: whole", len(w.ops), total, open,
		w.counters.Acked(), w.counters.Unknown(), w.scans.Load())
}

// The checker itself must notice.
func TestRegisterModel(t *testing.T) {
	at := func(call, ret int64, o registerOp) porcupine.Operation {
		if o.unknown {
			ret = math.MaxInt64
		}
		return porcupine.Operation{ClientId: int(call), Input: &o, Call: call, Return: ret}
	}
	for name, c := range map[string]struct {
		ops []porcupine.Operation
		ok  bool
	}{
		"a read of what was written": {[]porcupine.Operation{at(1, 2, registerOp{kind: "put", value: "a"}), at(3, 4, registerOp{kind: "get", value: "a"})}, true},
		"a lost write":               {[]porcupine.Operation{at(1, 2, registerOp{kind: "put", value: "a"}), at(3, 4, registerOp{kind: "get"})}, false},
		"an old value": {[]porcupine.Operation{at(1, 2, registerOp{kind: "put", value: "a"}), at(3, 4, registerOp{kind: "put", value: "b"}),
			at(5, 6, registerOp{kind: "get", value: "a"})}, false},
		"a late unknown write":   {[]porcupine.Operation{at(1, 2, registerOp{kind: "put", value: "a", unknown: true}), at(3, 4, registerOp{kind: "get"}), at(5, 6, registerOp{kind: "get", value: "a"})}, true},
		"a cas that cannot be":   {[]porcupine.Operation{at(1, 2, registerOp{kind: "put", value: "a"}), at(3, 4, registerOp{kind: "cas", expect: "b", value: "c"})}, false},
		"a cas that must be":     {[]porcupine.Operation{at(1, 2, registerOp{kind: "put", value: "a"}), at(3, 4, registerOp{kind: "cas", expect: "a", value: "c", failed: true})}, false},
		"an unknown cas":         {[]porcupine.Operation{at(1, 2, registerOp{kind: "cas", value: "c", unknown: true}), at(3, 4, registerOp{kind: "get", value: "c"})}, true},
		"a read from the future": {[]porcupine.Operation{at(1, 2, registerOp{kind: "get", value: "a"}), at(3, 4, registerOp{kind: "put", value: "a"})}, false},
	} {
		if got := porcupine.CheckOperations(registerModel, c.ops); got != c.ok {
			t.Errorf("%s: linearizable %v", name, got)
		}
	}
}
