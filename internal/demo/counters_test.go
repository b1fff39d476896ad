package demo

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/client/clienttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func cluster(t *testing.T) (*clienttest.Cluster, []client.Shard) {
	t.Helper()
	c := clienttest.New()
	if _, err := c.Init(t.Context(), 10, 3); err != nil {
		t.Fatal(err)
	}
	shards, err := c.Shards(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return c, shards
}

// TestCountersNoticeEverything lets a cluster lie in each of the ways that the counters are there to find.
func TestCountersNoticeEverything(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(*clienttest.Cluster, []byte)
		want string
	}{
		{"honest", func(*clienttest.Cluster, []byte) {}, ""},
		{"a lost write", func(c *clienttest.Cluster, key []byte) { _, _ = c.Add(context.Background(), key, -1) }, "lost"},
		{"a double write", func(c *clienttest.Cluster, key []byte) { _, _ = c.Add(context.Background(), key, 1) }, "twice"},
		{"a deleted counter", func(c *clienttest.Cluster, key []byte) { _ = c.Delete(context.Background(), key) }, "not found"},
	} {
		synctest.Test(t, func(t *testing.T) {
			kv, shards := cluster(t)
			n := StartCounters(t.Context(), kv, shards, "x", 100*time.Millisecond)
			n.Mark()
			if _, err := n.WaitWritable(t.Context()); err != nil {
				t.Fatal(err)
			}
			n.Stop()
			key, _ := client.KeyIn(shards[3], "counter/x")
			c.lie(kv, key)
			err := n.Verify(t.Context(), kv)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", c.name, err, c.want)
			}
		})
	}
}

// TestCountersUnknownOutcome allows an add of unknown outcome to have happened or not, and nothing more.
func TestCountersUnknownOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv, shards := cluster(t)
		var n atomic.Int64
		kv.Fail = func(op string, key []byte) error {
			if op == "add" && n.Add(1)%7 == 0 {
				return fmt.Errorf("lost: %w", client.ErrUnknown)
			}
			return nil
		}
		c := StartCounters(t.Context(), kv, shards, "x", 10*time.Millisecond)
		time.Sleep(time.Second)
		c.Stop()
		if c.Unknown() == 0 || c.Acked() == 0 {
			t.Errorf("%d acknowledged, %d unknown", c.Acked(), c.Unknown())
		}
		if err := c.Verify(t.Context(), kv); err != nil {
			t.Error(err)
		}
	})
}

// TestTakeOver makes one shard unavailable for two seconds: it is the last one, and the others do not wait.
func TestTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv, shards := cluster(t)
		dead, _ := client.KeyIn(shards[5], "counter/x")
		begin := time.Now()
		var allDead atomic.Bool
		kv.Fail = func(op string, key []byte) error {
			if allDead.Load() || op == "add" && string(key) == string(dead) && time.Since(begin) < 2*time.Second {
				return client.ErrUnavailable
			}
			return nil
		}
		c := StartCounters(t.Context(), kv, shards, "x", 50*time.Millisecond)
		defer c.Stop()
		c.Mark()
		over, err := c.WaitWritable(t.Context())
		if err != nil || over.LastShard != shards[5].ID || over.Last < 1900*time.Millisecond || over.P50 > 100*time.Millisecond {
			t.Errorf("%+v, %v", over, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		allDead.Store(true)
		c.Mark()
		if over, err := c.WaitWritable(ctx); err == nil || len(over.Missing) != 10 {
			t.Errorf("%+v, %v", over, err)
		}
	})
}

func TestWaitEqual(t *testing.T) {
	kv, shards := cluster(t)
	if err := WaitEqual(t.Context(), kv, shards); err != nil {
		t.Error(err)
	}
}
