package scheduler

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// bigReads has the lane of a node ask for big answers in one turn, and end that when all were fetched and wait has returned. It returns when that turn has
// begun. The channel gets the time of the turn in which each was answered.
func bigReads(t *testing.T, nodes []*testNode, reads int, wait func()) <-chan engine.Instant {
	createShards(t, nodes, 1)
	value := strings.Repeat("v", fetchedBytesMax)
	submit(t, nodes, KindWrite, 1, testPut(1, 1, value))
	turns := make(chan engine.Instant, reads)
	body := shard.AppendScan(nil, &shard.Scan{Shard: 1, Version: 1, Start: testDescriptor(1, 1).Start, End: testDescriptor(1, 1).End})
	begun := make(chan struct{})
	defer func() { <-begun }()
	nodes[0].s.lanes[0].box.putCall(func(l *Lane) {
		close(begun)
		for range reads {
			l.request(&Request{Kind: KindScan, Shard: 1, Body: body, Done: func(req *Request) {
				if req.Err != nil || len(req.Answer) < len(value) {
					t.Errorf("%d bytes, %v", len(req.Answer), req.Err)
				}
				turns <- l.now
			}})
		}
		l.readAll() // should the lease have run out
		back := func() int {
			l.box.mu.Lock()
			defer l.box.mu.Unlock()
			return len(l.box.in.calls)
		}
		for end := time.Now().Add(20 * time.Second); back() < reads; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%d of %d reads are back", back(), reads)
				return
			}
		}
		wait()
	})
	return turns
}

// TestBigReadsTakeTurns: of big answers that are fetched at the same time a turn of the lane makes one, so that what else there is to do waits for
// one at most. All are answered.
func TestBigReadsTakeTurns(t *testing.T) {
	nodes := startNodes(t, 1, 1)
	defer stopNodes(t, nodes)
	const reads = 5
	turns := bigReads(t, nodes, reads, func() {})
	seen := map[engine.Instant]bool{}
	for range reads {
		at := <-turns
		if seen[at] {
			t.Error("a turn has made two big answers")
		}
		seen[at] = true
	}
}

// TestBigReadsAtStop: those that are back when there is but one turn left are answered in it.
func TestBigReadsAtStop(t *testing.T) {
	nodes := startNodes(t, 1, 1)
	s := nodes[0].s
	const reads = 5
	turns := bigReads(t, nodes, reads, func() {
		for !s.stopped.Load() {
			time.Sleep(time.Millisecond)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // nobody is there to hand over to
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
	if n := len(turns); n != reads {
		t.Errorf("%d of %d were answered", n, reads)
	}
	stopNodes(t, nodes)
}

// TestReadsOfTheLastTurn: what asks the readers in the last turn of all, when there are none any more, is answered too. It once was not, and whoever had asked waited for ever.
func TestReadsOfTheLastTurn(t *testing.T) {
	const rounds, reads = 8, 3
	for range rounds { // in half of them the lane takes one more turn by itself
		nodes := startNodes(t, 1, 1)
		createShards(t, nodes, 1)
		submit(t, nodes, KindWrite, 1, testPut(1, 1, strings.Repeat("v", fetchedBytesMax)))
		s := nodes[0].s
		body := shard.AppendScan(nil, &shard.Scan{Shard: 1, Version: 1, Start: testDescriptor(1, 1).Start, End: testDescriptor(1, 1).End})
		answers, waits := make(chan error, reads), make(chan struct{})
		s.lanes[0].box.putCall(func(l *Lane) {
			close(waits)
			<-s.run.stop
			l.box.putCall(func(l *Lane) {
				for range reads {
					l.request(&Request{Kind: KindScan, Shard: 1, Body: body, Done: func(req *Request) { answers <- req.Err }})
				}
				l.readAll()
			})
		})
		<-waits
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
		if n := len(answers); n != reads {
			t.Errorf("%d of %d were answered", n, reads)
		}
		stopNodes(t, nodes)
	}
}
