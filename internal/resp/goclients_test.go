package resp_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// goRedis uses go-redis with both protocols.
func goRedis(t *testing.T, opt *goredis.Options) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, proto := range []int{2, 3} {
		opt.Protocol = proto
		c := goredis.NewClient(opt)
		p := fmt.Sprintf("gr%d:", proto)
		if err := c.Set(ctx, p+"a", "1", time.Minute).Err(); err != nil {
			t.Error("go-redis:", err)
		}
		if v, err := c.Get(ctx, p+"a").Result(); v != "1" || err != nil {
			t.Error("go-redis:", v, err)
		}
		if _, err := c.Get(ctx, p+"none").Result(); err != goredis.Nil {
			t.Error("go-redis:", err)
		}
		pipe := c.Pipeline()
		for range 100 {
			pipe.Incr(ctx, p+"n")
		}
		if _, err := pipe.Exec(ctx); err != nil {
			t.Error("go-redis:", err)
		}
		cmds, err := c.TxPipelined(ctx, func(tx goredis.Pipeliner) error {
			tx.Incr(ctx, p+"n")
			tx.Persist(ctx, p+"a")
			return nil
		})
		if err != nil || cmds[0].(*goredis.IntCmd).Val() != 101 || !cmds[1].(*goredis.BoolCmd).Val() {
			t.Error("go-redis:", cmds, err)
		}
		n := 0
		it := c.Scan(ctx, 0, p+"*", 100).Iterator()
		for ; it.Next(ctx); n++ {
		}
		if n != 2 || it.Err() != nil {
			t.Error("go-redis: scan", n, it.Err())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// rueidisClient uses rueidis, which cannot do without DisableCache: there is no CLIENT TRACKING.
func rueidisClient(t *testing.T, opt rueidis.ClientOption) {
	t.Helper()
	opt.DisableCache, opt.ForceSingleClient = true, true
	c, err := rueidis.NewClient(opt)
	if err != nil {
		t.Fatal("rueidis:", err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Do(ctx, c.B().Set().Key("ru:a").Value("1").Build()).Error(); err != nil {
		t.Error("rueidis:", err)
	}
	if v, err := c.Do(ctx, c.B().Incr().Key("ru:a").Build()).AsInt64(); v != 2 || err != nil {
		t.Error("rueidis:", v, err)
	}
	if v, err := c.Do(ctx, c.B().Mget().Key("ru:a", "ru:b").Build()).ToArray(); err != nil || len(v) != 2 || !v[1].IsNil() {
		t.Error("rueidis:", v, err)
	}
	var incrs rueidis.Commands
	for range 100 {
		incrs = append(incrs, c.B().Incr().Key("ru:n").Build())
	}
	results := c.DoMulti(ctx, incrs...)
	if v, err := results[99].AsInt64(); v != 100 || err != nil {
		t.Error("rueidis:", v, err)
	}
	tx := c.DoMulti(ctx, c.B().Multi().Build(), c.B().Incr().Key("ru:n").Build(), c.B().Exec().Build())
	if v, err := tx[2].AsIntSlice(); err != nil || len(v) != 1 || v[0] != 101 {
		t.Error("rueidis:", v, err)
	}
}
