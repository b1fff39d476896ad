package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/escape"
)

// Counters adds 1 to one counter per shard, over and over, and knows what every counter must show: exactly the adds that were
// acknowledged. One that shows less lost a write, one that shows more did a write twice.
type Counters struct {
	kv     client.KV
	list   []*counter
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mark   atomic.Int64 // Unix nanoseconds; see Mark
}

type counter struct {
	shard   uint64
	key     []byte
	acked   atomic.Int64
	unknown atomic.Int64 // adds of which the client could not say whether they happened
	first   atomic.Int64 // nanoseconds from mark to the first acknowledgement of an add that began after it; 0: none yet
	failure atomic.Pointer[error]
}

// StartCounters begins the load: in each shard one add at a time, with a pause between two.
func StartCounters(ctx context.Context, kv client.KV, shards []client.Shard, run string, pause time.Duration) *Counters {
	ctx, cancel := context.WithCancel(ctx)
	c := &Counters{kv: kv, cancel: cancel}
	for _, s := range shards {
		if key, ok := client.KeyIn(s, "counter/"+run); ok {
			c.list = append(c.list, &counter{shard: s.ID, key: key})
		}
	}
	for i, n := range c.list {
		c.wg.Go(func() { c.run(ctx, n, pause, time.Duration(i)*pause/time.Duration(len(c.list))) })
	}
	return c
}

// run adds until the context ends. The add in flight then is finished: its acknowledgement must count.
func (c *Counters) run(ctx context.Context, n *counter, pause, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		begin := time.Now()
		addCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		sum, err := c.kv.Add(addCtx, n.key, 1)
		cancel()
		switch {
		case err == nil:
			acked := n.acked.Add(1)
			if unknown := n.unknown.Load(); sum < acked || sum > acked+unknown {
				c.fail(n, fmt.Errorf("add number %d (%d unknown) answered %d", acked, unknown, sum))
			}
			if mark := c.mark.Load(); mark != 0 && begin.UnixNano() >= mark {
				n.first.CompareAndSwap(0, time.Now().UnixNano()-mark)
			}
		case errors.Is(err, client.ErrUnknown):
			n.unknown.Add(1)
		case errors.Is(err, client.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
			// had no effect
		default:
			c.fail(n, err)
			return
		}
		timer.Reset(pause)
	}
}

func (c *Counters) fail(n *counter, err error) {
	err = fmt.Errorf("counter %s in shard %d: %w", escape.String(n.key), n.shard, err)
	n.failure.CompareAndSwap(nil, &err)
}

// Acked is the number of acknowledged adds.
func (c *Counters) Acked() (sum int64) {
	for _, n := range c.list {
		sum += n.acked.Load()
	}
	return sum
}

// Unknown is the number of adds whose outcome the client could not tell.
func (c *Counters) Unknown() (sum int64) {
	for _, n := range c.list {
		sum += n.unknown.Load()
	}
	return sum
}

// Mark starts the clock of WaitWritable.
func (c *Counters) Mark() {
	for _, n := range c.list {
		n.first.Store(0)
	}
	c.mark.Store(time.Now().UnixNano())
}

// TakeOver tells how long after Mark shards were writable.
type TakeOver struct {
	Shards         int
	P50, P99, Last time.Duration
	LastShard      uint64
	Missing        []uint64 // shards that are not yet
}

// WaitWritable waits until in every shard an add that began after Mark was acknowledged.
func (c *Counters) WaitWritable(ctx context.Context) (TakeOver, error) {
	for {
		var times []time.Duration
		t := TakeOver{Shards: len(c.list)}
		for _, n := range c.list {
			if f := n.failure.Load(); f != nil {
				return t, *f
			}
			d := time.Duration(n.first.Load())
			if d == 0 {
				t.Missing = append(t.Missing, n.shard)
				continue
			}
			times = append(times, d)
			if d > t.Last {
				t.Last, t.LastShard = d, n.shard
			}
		}
		if len(times) > 0 {
			slices.Sort(times)
			t.P50, t.P99 = times[len(times)/2], times[len(times)*99/100]
		}
		if len(t.Missing) == 0 {
			return t, nil
		}
		select {
		case <-ctx.Done():
			return t, fmt.Errorf("%d of %d shards take no writes, among them %v: %w", len(t.Missing), t.Shards, t.Missing[:min(10, len(t.Missing))], ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Stop ends the load and waits for what is in flight.
func (c *Counters) Stop() {
	c.cancel()
	c.wg.Wait()
}

// Verify reads every counter and compares it with what was acknowledged. The load must have been stopped.
func (c *Counters) Verify(ctx context.Context, kv client.KV) error {
	var errs []error
	for _, n := range c.list {
		if f := n.failure.Load(); f != nil {
			errs = append(errs, *f)
			continue
		}
		if err := n.verify(ctx, kv); err != nil {
			errs = append(errs, fmt.Errorf("counter %s in shard %d: %w", escape.String(n.key), n.shard, err))
		}
	}
	if len(errs) > 10 {
		errs = append(errs[:10], fmt.Errorf("and %d more", len(errs)-10))
	}
	return errors.Join(errs...)
}

func (n *counter) verify(ctx context.Context, kv client.KV) error {
	acked, unknown := n.acked.Load(), n.unknown.Load()
	it, err := kv.Get(ctx, n.key)
	if errors.Is(err, client.ErrNotFound) && acked == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	sum, err := strconv.ParseInt(string(it.Value), 10, 64)
	if err != nil {
		return err
	}
	if sum < acked {
		return fmt.Errorf("shows %d, but %d adds were acknowledged: writes were lost", sum, acked)
	}
	if sum > acked+unknown {
		return fmt.Errorf("shows %d after %d acknowledged adds (%d unknown): writes were done twice", sum, acked, unknown)
	}
	return nil
}
