package node_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/shard"
)

// Counters go up by exactly what was acknowledged while nodes are killed and come back; only writes whose outcome is reported as
// unknown may count or not.
func TestCountersSurviveKills(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 20, 3)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const workers, keys = 8, 40
	var mu sync.Mutex
	acked, unknown := map[string]int64{}, map[string]int64{}
	var wg sync.WaitGroup
	client := c.Node(0).Client() // node 0 lives on
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := w; ctx.Err() == nil; i += 7 {
				k := key(i % keys)
				actx, done := context.WithTimeout(context.Background(), 10*time.Second)
				_, err := client.Add(actx, k, 1)
				done()
				mu.Lock()
				switch {
				case err == nil:
					acked[string(k)]++
				case errors.Is(err, shard.ErrAmbiguous):
					unknown[string(k)]++
				default:
					t.Errorf("add: %v", err)
				}
				mu.Unlock()
			}
		}()
	}
	progress := func(n int64) {
		t.Helper()
		mu.Lock()
		start := int64(0)
		for _, v := range acked {
			start += v
		}
		mu.Unlock()
		nodetest.Eventually(t, 20*time.Second, func() error {
			mu.Lock()
			defer mu.Unlock()
			now := int64(0)
			for _, v := range acked {
				now += v
			}
			if now < start+n {
				return fmt.Errorf("%d writes since, want %d", now-start, n)
			}
			return nil
		})
	}
	for _, victim := range []int{1, 2, 1} {
		progress(200)
		c.Kill(victim)
		progress(200)
		c.Restart(victim)
	}
	progress(200)
	cancel()
	wg.Wait()
	for k, n := range acked {
		e, err := c.Node(2).Client().Get(deadline(t, 10*time.Second), []byte(k))
		if err != nil {
			t.Fatalf("%q: %v", k, err)
		}
		var got int64
		if _, err := fmt.Sscan(string(e.Value), &got); err != nil || got < n || got > n+unknown[k] {
			t.Errorf("%q is %q, acknowledged %d, unknown %d", k, e.Value, n, unknown[k])
		}
	}
}
