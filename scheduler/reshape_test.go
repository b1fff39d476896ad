package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// reshapeOrder gives an order to every node in turn until the leader has carried it out.
func reshapeOrder(t *testing.T, nodes []*testNode, what string, order func(s *Scheduler, done func(error))) {
	t.Helper()
	var last error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for _, n := range nodes {
			ch := make(chan error, 1)
			order(n.s, func(err error) { ch <- err })
			if last = <-ch; last == nil {
				return
			}
		}
	}
	t.Fatalf("%s: %v", what, last)
}

// TestReshapeGoroutines splits a shard and merges it again under load, with goroutines and several lanes.
func TestReshapeGoroutines(t *testing.T) {
	defer goleak.VerifyNone(t)
	nodes := startNodes(t, 3, 3)
	createShards(t, nodes, 2)
	ids := []engine.ShardID{2, 10, 11, 12}
	var stop atomic.Bool
	var wg sync.WaitGroup
	sums := make([]int64, 4)
	for w := range sums {
		wg.Go(func() {
			key := fmt.Appendf(nil, "00002/%d", w)
			for seq := uint64(1); !stop.Load(); seq++ {
				for i := 0; ; i++ { // whoever it is that owns it
					wr := shard.Write{Shard: ids[i/3%4], Version: 1, Session: shard.NewSessionID(time.Now().UnixMilli(), uint64(w)+seq<<8), Seq: seq, Lowest: seq,
						Ops: []shard.Op{{Kind: shard.OpPut, Key: key, Value: fmt.Append(nil, seq)}}}
					done := make(chan struct{})
					req := &Request{Kind: KindWrite, Shard: wr.Shard, Body: shard.AppendWrite(nil, &wr), Done: func(*Request) { close(done) }}
					nodes[i%3].s.Submit(req)
					<-done
					if req.Err == nil {
						sums[w]++
						break
					}
					if errors.Is(req.Err, shard.ErrInvalid) {
						t.Error(req.Err)
						return
					}
					time.Sleep(100 * time.Microsecond)
				}
			}
		})
	}
	sp := &shard.Split{Version: 1, ConfVersion: 1}
	for i, id := range ids[1:] {
		c := shard.SplitChild{Shard: id, Start: fmt.Appendf(nil, "00002/%d", i+1)}
		for n := range nodes {
			c.Replicas = append(c.Replicas, shard.SplitReplica{Node: engine.NodeID(n + 1), Replica: engine.ReplicaID(10*int(id) + n)})
		}
		sp.Children = append(sp.Children, c)
	}
	reshapeOrder(t, nodes, "split", func(s *Scheduler, done func(error)) { s.Split(2, sp, done) })
	time.Sleep(50 * time.Millisecond)
	for _, right := range ids[1:] {
		reshapeOrder(t, nodes, fmt.Sprint("merge of ", right), func(s *Scheduler, done func(error)) {
			list, err := s.Statuses(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			spec := MergeSpec{Left: 2, Right: right}
			for _, st := range list {
				switch d := st.Descriptor; {
				case d == nil:
				case st.Shard == 2:
					spec.LeftVersion, spec.LeftConfVersion = d.Version, d.ConfVersion
					if d.Contains(fmt.Appendf(nil, "00002/%d", right-9)) {
						done(nil) // an earlier order has done it
						return
					}
				case st.Shard == right:
					spec.RightVersion, spec.RightConfVersion = d.Version, d.ConfVersion
				}
			}
			s.Merge(spec, done)
		})
	}
	stop.Store(true)
	wg.Wait()
	for w, n := range sums {
		if n == 0 {
			t.Errorf("client %d wrote nothing", w)
		}
	}
	stopNodes(t, nodes)
}
