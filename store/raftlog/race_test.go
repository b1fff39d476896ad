package raftlog_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
	"go.uber.org/goleak"
)

// TestConcurrentLanes runs two lanes, each with a cold reader, and a writer as goroutines, while segments are recycled.
func TestConcurrentLanes(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, _, err := raftlog.Open(vfs.OS(), t.TempDir(), raftlog.Options{SegmentBytes: segmentBytes, CacheBytes: 1000, Background: true})
	if err != nil {
		t.Fatal(err)
	}
	mail := []chan raftlog.Completion{make(chan raftlog.Completion, 8), make(chan raftlog.Completion, 8)}
	quit := make(chan struct{})
	var lanes, writer sync.WaitGroup
	for id := range mail {
		lanes.Go(func() { laneTurns(t, l.Lane(id), engine.ShardID(id+1), mail[id]) })
	}
	writer.Go(func() {
		for {
			select {
			case <-l.Pending():
			case <-quit:
				return
			}
			done, err := l.Flush()
			if err != nil {
				t.Error(err)
				return
			}
			for _, c := range done {
				mail[c.Lane] <- c
			}
			if err := l.Maintain(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	lanes.Wait()
	close(quit)
	writer.Wait()
	if l.Metrics().SegmentsFreed.Load() == 0 {
		t.Error("no segment was freed")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func laneTurns(t *testing.T, a *raftlog.Lane, shard engine.ShardID, mail <-chan raftlog.Completion) {
	k := raftlog.Key{Shard: shard, Replica: 1}
	a.Init(k, engine.Vote{}, engine.LogID{Term: 1, Index: 1})
	var reads sync.WaitGroup
	defer reads.Wait()
	for index := uint64(2); index < 150; index++ {
		a.Append(k, raftlog.Run{Term: 1, First: index, Count: 1, Body: raftlog.AppendEntry(nil, engine.EntryNormal, make([]byte, 700))})
		a.SaveVote(k, engine.Vote{Term: 1})
		a.SaveCommitted(k, engine.LogID{Term: 1, Index: index - 1})
		if index > 10 {
			a.Purge(k, engine.LogID{Term: 1, Index: index - 8})
		}
		batch := a.Submit()
		for done := uint64(0); done < batch; {
			c := <-mail
			a.Flushed(c)
			done = c.Batch
		}
		if index < 5 {
			continue
		}
		c, err := a.Locate(k, index-2, index, 10000)
		if err != nil {
			t.Error(err)
			return
		}
		reads.Go(func() {
			if runs, err := c.Read(); err != nil && !errors.Is(err, raftlog.ErrMoved) || err == nil && len(runs) != 3 {
				t.Errorf("cold read: %d runs, %v", len(runs), err)
			}
		})
	}
}
