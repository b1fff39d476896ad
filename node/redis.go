package node

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/resp"
)

// redisServer serves Redis clients.
type redisServer struct {
	addr   string
	server *resp.Server
	done   chan struct{}
}

func (n *Node) openRedis() (*redisServer, error) {
	if n.cfg.Redis == "" {
		return nil, nil
	}
	l, err := listen("redis", n.cfg.Redis, nil)
	if err != nil {
		return nil, err
	}
	s := &redisServer{
		addr: advertised("", l.Addr()),
		server: resp.New(resp.Config{KV: n.client, Timeout: n.cfg.RedisTimeout, Logger: n.log, Guard: redisGuard{n.sec}, TLS: n.sec.serverTLS(), Node: func() resp.NodeInfo {
			return resp.NodeInfo{ID: uint64(n.ID()), Name: n.name, Version: Version()}
		}}),
		done: make(chan struct{}),
	}
	go func() { // ends with close
		defer close(s.done)
		if err := s.server.Serve(l); err != nil {
			n.log.Error("the listener for Redis clients is gone", "err", err)
		}
	}()
	return s, nil
}

// redisGuard is security as the Redis door asks it.
type redisGuard struct{ s *security }

// Greet implements resp.Guard.
func (g redisGuard) Greet(st *tls.ConnectionState, from string) (*auth.Identity, time.Time, error) {
	leaf := leafOf(st)
	if leaf == nil && g.s.on() {
		return auth.Nobody(), time.Time{}, nil
	}
	return g.s.identify(context.Background(), leaf, "", nil, from)
}

// Password implements resp.Guard.
func (g redisGuard) Password(ctx context.Context, user string, password []byte, from string) (*auth.Identity, error) {
	id, err := g.s.users.Password(ctx, user, password, from)
	if errors.Is(err, auth.ErrWrong) {
		g.s.denied.Add(1)
	}
	return id, err
}

// Record implements resp.Guard.
func (g redisGuard) Record(id *auth.Identity, from, action string, err error) {
	g.s.record(id, from, "redis", action, err)
}

func (s *redisServer) close() error {
	err := s.server.Close()
	<-s.done
	return err
}

// RedisAddr returns the address for Redis clients, empty if there is none.
func (n *Node) RedisAddr() string {
	if n.redis == nil {
		return ""
	}
	return n.redis.addr
}

var respCommandsDesc = prometheus.NewDesc("kiloraft_resp_commands_total", "Commands of Redis clients.", []string{"cmd"}, nil)

// collect sends the metrics of the Redis front door.
func (s *redisServer) collect(ch chan<- prometheus.Metric) {
	m := s.server.Metrics
	send(ch, []metric{
		gauge("resp_connections", "Connections of Redis clients.", func() float64 { return float64(m().Connections) }),
		gauge("resp_output_buffer_bytes", "Replies that Redis clients have not taken yet.", func() float64 { return float64(m().ReplyBytes) }),
		gauge("resp_request_bytes", "Arguments of Redis commands in flight.", func() float64 { return float64(m().RequestBytes) }),
		counter("resp_connections_accepted_total", "Connections of Redis clients accepted.", func() uint64 { return m().Accepted }),
		counter("resp_connections_refused_total", "Connections of Redis clients refused because there were too many.", func() uint64 { return m().Refused }),
		counter("resp_connections_dropped_total", "Redis clients cut off: they did not take their replies, held most when all held too much, or were silent when others wanted in.", func() uint64 { return m().Dropped }),
		counter("resp_denied_total", "Wrong passwords of Redis clients.", func() uint64 { return m().Denied }),
		counter("resp_malformed_total", "Redis connections ended for a protocol error.", func() uint64 { return m().Malformed }),
	})
	s.server.Commands(func(name string, calls uint64) bool {
		ch <- prometheus.MustNewConstMetric(respCommandsDesc, prometheus.CounterValue, float64(calls), name)
		return true
	})
}
