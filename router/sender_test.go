package router

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// server is a node that hands requests to a fake cluster.
type server struct {
	f    *fake
	node engine.NodeID
}

func (s *server) RaftFrame(engine.NodeID, uint64, []byte)                           {}
func (s *server) Heartbeat(engine.NodeID, uint64, []byte)                           {}
func (s *server) Snapshot(engine.NodeID, uint64, []byte, *transport.SnapshotReader) {}
func (s *server) PeerConnected(node engine.NodeID, incarnation uint64, addr string) {}
func (s *server) PeerDisconnected(node engine.NodeID, incarnation uint64)           {}
func (s *server) Request(req transport.Request) {
	s.f.Send(s.node, "", req.Method, req.Flags, req.Deadline, req.Body, func(b []byte, err error) {
		status, body := shard.EncodeError(nil, err)
		if err == nil {
			body = b
		}
		req.Reply(uint16(status), body)
	})
}

// The client over real connections.
func TestDial(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := newFake(t, "g")
	for id := range f.leaders {
		f.leaders[id] = 1
	}
	f.addr = l.Addr().String()
	tr, err := transport.New(transport.Config{ClusterID: transport.ID{1}, Node: 1, Identity: transport.ID{2}, Incarnations: []uint64{3},
		AdvertiseAddr: f.addr}, &server{f, 1})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- tr.Serve(l) }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := Dial(ctx, []string{f.addr}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.Add(ctx, []byte("k"), 3); err != nil || n != 3 {
		t.Error(n, err)
	}
	if _, err := c.CompareAndSwap(ctx, []byte("k"), Absent(nil), nil); !errors.Is(err, shard.ErrConditionFailed) {
		t.Error(err)
	}
	n := 0
	for e, err := range c.Scan(ctx, nil, nil) {
		if err != nil || string(e.Key) != "k" {
			t.Error(e, err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d keys", n)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(ctx, []byte("k")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	<-served
	short, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	if _, err := Dial(short, []string{f.addr}, Config{}); !errors.Is(err, shard.ErrUnavailable) {
		t.Errorf("nobody is there: %v", err)
	}
}

// Requests wait for a dial and share it; when it fails all of them learn that nothing was sent.
func TestPoolSharesDials(t *testing.T) {
	p := NewPool(transport.ClientConfig{})
	dials := 0
	release := make(chan error)
	p.dial = func(ctx context.Context, _ string, _ transport.ClientConfig) (poolConn, error) {
		dials++
		select {
		case err := <-release:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	answers := make(chan error, 10)
	send := func() { p.Send(1, "x", 1, 0, time.Time{}, nil, func(_ []byte, err error) { answers <- err }) }
	for range 5 {
		send()
	}
	release <- errors.New("refused")
	for range 5 {
		var e *SendError
		if err := <-answers; !errors.As(err, &e) || e.Sent {
			t.Errorf("%v", err)
		}
	}
	if dials != 1 {
		t.Errorf("%d dials", dials)
	}
	send()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := <-answers; err == nil {
		t.Error("no error after Close")
	}
	send()
	if err := <-answers; !errors.Is(err, transport.ErrClosed) {
		t.Error(err)
	}
	p.Send(1, "", 1, 0, time.Time{}, nil, func(_ []byte, err error) { answers <- err })
	<-answers
}

func TestAnswerError(t *testing.T) {
	status, body := shard.EncodeError(nil, &shard.NotLeaderError{Leader: 3})
	for _, c := range []struct {
		in   error
		is   error
		sent bool
	}{
		{transport.ErrOverloaded, shard.ErrOverloaded, false}, {transport.ErrTooLarge, shard.ErrTooLarge, false},
		{transport.ErrNotConnected, transport.ErrNotConnected, false}, {transport.ErrConnectionLost, transport.ErrConnectionLost, true},
		{transport.ErrDeadline, transport.ErrDeadline, true}, {&transport.StatusError{Status: uint16(status), Body: body}, shard.ErrNotLeader, false},
		{&transport.StatusError{Status: 9999}, shard.ErrInternal, false},
	} {
		got := AnswerError(c.in)
		var e *SendError
		if !errors.Is(got, c.is) || errors.As(got, &e) && e.Sent != c.sent || !errors.As(got, &e) && c.sent {
			t.Errorf("%v: %v", c.in, got)
		}
	}
	var e *SendError
	if got := AnswerError(&transport.StatusError{Status: transport.StatusExpired}); !errors.As(got, &e) || !e.Sent {
		t.Error(got)
	}
	if AnswerError(nil) != nil {
		t.Error("nil")
	}
}
