package scheduler

import (
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// A node takes so many writes, and bytes of them, and refuses more until some are answered. Reads go on, and a refused write counts for nothing.
func TestOverload(t *testing.T) {
	s, clock := single(t, 1)
	answers := map[*Request]int{}
	submit := func(kind Kind, body []byte, together bool) *Request {
		req := &Request{Kind: kind, Shard: 1, Body: body, Done: func(r *Request) { answers[r]++ }}
		if together {
			s.SubmitAll([]*Request{req})
		} else {
			s.Submit(req)
		}
		return req
	}
	put := testPut(1, 1, "value")
	turns := func() {
		for range 5 { // proposed, synced, applied
			spin(s, clock)
		}
	}
	submit(KindWrite, put, false) // what the reads find
	turns()
	for _, bound := range []func(){
		func() { s.pace.limit.Store(3) },
		func() { s.pace.limit.Store(1000); s.cfg.InflightBytesMax = int64(3 * len(put)) },
	} {
		bound()
		for _, together := range []bool{false, true} {
			refusals := s.metrics.Refusals[RefusalOverloaded].Load()
			var taken []*Request
			for range 3 {
				taken = append(taken, submit(KindWrite, put, together))
			}
			for range 2 {
				if req := submit(KindWrite, put, together); answers[req] != 1 || !errors.Is(req.Err, shard.ErrOverloaded) {
					t.Errorf("a fourth write: %d answers, %v", answers[req], req.Err)
				}
			}
			if n := s.metrics.Refusals[RefusalOverloaded].Load() - refusals; n != 2 {
				t.Errorf("%d refusals were counted, want 2", n)
			}
			read := submit(KindRead, shard.AppendRead(nil, &shard.Read{Shard: 1, Version: 1, Keys: [][]byte{[]byte("00001/1")}}), together)
			turns()
			for _, req := range append(taken, read) {
				if answers[req] != 1 || req.Err != nil {
					t.Errorf("%v that was taken: %d answers, %v", req.Kind, answers[req], req.Err)
				}
			}
			if s.metrics.Inflight.Load() != 0 || s.metrics.InflightBytes.Load() != 0 {
				t.Errorf("nothing is under way, but %d writes of %d bytes count", s.metrics.Inflight.Load(), s.metrics.InflightBytes.Load())
			}
		}
	}
}

// How many writes may be under way follows what is done, if they take long; and grows again.
func TestPace(t *testing.T) {
	const most, tick, ms = 16 << 10, engine.Instant(100e6), uint64(1e6)
	var (
		p          pace
		now        = engine.Instant(5e9)
		count, sum uint64
	)
	p.limit.Store(most)
	look := func(ticks int, n, took uint64) int64 { // n writes in each tick that take so many ms
		for range ticks {
			now, count, sum = now+tick, count+n, sum+n*took*ms
			p.adjust(now, count, sum, most)
		}
		return p.limit.Load()
	}
	if l := look(20, 300, 100); l != most {
		t.Errorf("3,000/s of 100 ms: %d", l)
	}
	if l := look(20, 300, 200); l != most {
		t.Errorf("3,000/s of 200 ms: %d", l)
	}
	if l := look(20, 300, 900); l < 1450 || l > 1550 {
		t.Errorf("3,000/s of 900 ms: %d, want what is done in half a second", l)
	}
	if l := look(20, 0, 0); l < 1450 || l > 1550 {
		t.Errorf("nothing was done: %d, want what it was", l)
	}
	if l := look(20, 10, 900); l != inflightMin {
		t.Errorf("100/s of 900 ms: %d", l)
	}
	if l := look(20, 10, 50); l != most {
		t.Errorf("100/s of 50 ms, 2 s later: %d", l)
	}
	if l := look(1, 300, 5000); l < inflightMin || l > most {
		t.Errorf("after a stall of 5 s: %d", l)
	}
}

// What a write waits for its lane counts for the pace, but not what it has waited for a leader.
func TestPaceCountsTheMailbox(t *testing.T) {
	s, clock := single(t, 1)
	for _, c := range []struct {
		awaited bool
		want    uint64
	}{{false, 700e6}, {true, 0}} {
		_, before := s.metrics.CommitLatency.Count()
		req := &Request{Kind: KindWrite, Shard: 1, Body: testPut(1, 1, "value"), Arrived: clock.now, Done: func(r *Request) {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}}
		s.Submit(req)
		req.awaited = c.awaited // as if it had been put back for want of a leader
		clock.now += 700e6      // a long turn
		for range 5 {
			spin(s, clock)
		}
		if _, sum := s.metrics.CommitLatency.Count(); sum-before < c.want || sum-before > c.want+100e6 {
			t.Errorf("awaited %v, 700 ms in the mailbox: %d ms count", c.awaited, (sum-before)/1e6)
		}
	}
}
