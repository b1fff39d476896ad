package node_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// ask sends one request over a plain connection.
func ask(t *testing.T, conn *transport.ClientConn, method uint16, flags uint8, body []byte) ([]byte, error) {
	t.Helper()
	type answer struct {
		body []byte
		err  error
	}
	ch := make(chan answer, 1)
	conn.Go(method, time.Now().Add(5*time.Second), flags, body, func(b []byte, err error) { ch <- answer{b, router.AnswerError(err)} })
	a := <-ch
	return a.body, a.err
}

// Any node takes any request, for clients that know one address and no shards.
func TestRoutedRequests(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 9, 3)
	conn, err := transport.DialClient(context.Background(), c.Addrs()[1], transport.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for i := range 20 {
		w := &shard.Write{Ops: []shard.Op{{Kind: shard.OpAdd, Key: key(i), Delta: int64(i)}}}
		body, err := ask(t, conn, api.MethodRouteWrite, 0, shard.AppendWrite(nil, w))
		var res shard.Result
		if err == nil {
			err = shard.DecodeResult(body, &res)
		}
		if err != nil || len(res.Values) != 1 || res.Values[0] != int64(i) {
			t.Fatalf("write %d: %+v, %v", i, res, err)
		}
		keys := [][]byte{key(i)}
		body, err = ask(t, conn, api.MethodRouteRead, 0, shard.AppendRead(nil, &shard.Read{Keys: keys}))
		if err != nil {
			t.Fatalf("read %d: %v", i, err)
		}
		entries, err := shard.DecodeAnswer(body, keys, nil)
		if err != nil || len(entries) != 1 || string(entries[0].Value) != fmt.Sprint(i) {
			t.Fatalf("read %d: %+v, %v", i, entries, err)
		}
	}
	// A read that names a large value again and again is answered with as many as fit.
	if _, err := c.Node(0).Client().Put(t.Context(), []byte("large"), make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	many := make([][]byte, shard.ReadKeysMax)
	for i := range many {
		many[i] = []byte("large")
	}
	answer, err := ask(t, conn, api.MethodRouteRead, 0, shard.AppendRead(nil, &shard.Read{Keys: many}))
	if err != nil || len(answer) > shard.AnswerBytesMax+1<<10 {
		t.Errorf("read of %d large values: %d bytes, %v", len(many), len(answer), err)
	} else if entries, err := shard.DecodeAnswer(answer, many, nil); err != nil || len(entries) == 0 || len(entries) == len(many) {
		t.Errorf("read of %d large values: %d entries, %v", len(many), len(entries), err)
	}
	body, err := ask(t, conn, api.MethodRouteScan, 0, shard.AppendScan(nil, &shard.Scan{}))
	var page shard.Page
	if err == nil {
		err = shard.DecodePage(body, &page)
	}
	if err != nil || len(page.Entries) == 0 && page.Done {
		t.Errorf("scan: %+v, %v", page, err)
	}
	// Conditions, bad bodies and unknown methods have their own errors.
	w := &shard.Write{Conditions: []shard.Condition{{Kind: shard.ConditionAbsent, Key: key(1)}}, Ops: []shard.Op{{Kind: shard.OpPut, Key: key(1)}}}
	body, err = ask(t, conn, api.MethodRouteWrite, 0, shard.AppendWrite(nil, w))
	var res shard.Result
	if err == nil && shard.DecodeResult(body, &res) == nil {
		err = res.Err()
	}
	if !errors.Is(err, shard.ErrConditionFailed) {
		t.Errorf("condition: %v", err)
	}
	for _, method := range []uint16{api.MethodRouteWrite, api.MethodRead, api.MethodMap, api.MethodReserve, 64, 65, 66, 67, 9999} {
		if _, err := ask(t, conn, method, 0, []byte{0xc1, 2, 3}); !errors.Is(err, shard.ErrInvalid) {
			t.Errorf("garbage to method %d: %v", method, err)
		}
	}
}

// A request for a shard goes to the leader if the client asks for that, and only once (rule Cluster3).
func TestForward(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 3, 3)
	s := shards(t, c, 0)[0]
	follower := 0
	for i := range 3 {
		if c.Node(i).ID() == s.Leader%3+1 {
			follower = i
		}
	}
	conn, err := transport.DialClient(context.Background(), c.Addrs()[follower], transport.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	body := shard.AppendWrite(nil, &shard.Write{Shard: s.Descriptor.Shard, Version: s.Descriptor.Version,
		Ops: []shard.Op{{Kind: shard.OpPut, Key: append(s.Descriptor.Start, 1), Value: []byte("v")}}})
	if _, err := ask(t, conn, api.MethodWrite, api.FlagForward, body); err != nil {
		t.Errorf("forwarded: %v", err)
	}
	for _, flags := range []uint8{0, transport.FlagForwarded, transport.FlagForwarded | api.FlagForward} {
		var e *shard.NotLeaderError
		if _, err := ask(t, conn, api.MethodWrite, flags, body); !errors.As(err, &e) || e.Leader != s.Leader || e.Addr == "" {
			t.Errorf("flags %d: %v", flags, err)
		}
	}
}

// TestClientsTakeNoPlacesOfNodes: when so many requests of clients wait that no more is taken of them, what another node asks is answered.
func TestClientsTakeNoPlacesOfNodes(t *testing.T) {
	c := nodetest.Start(t, 2, nodetest.Options{})
	c.Init(0, 1, 2)
	conn, err := transport.DialClient(t.Context(), c.Addrs()[0], transport.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c.Node(0).FillClientSlots()
	if _, err := ask(t, conn, api.MethodOps, 0, (&api.OpsRequest{}).Append(nil)); !errors.Is(err, shard.ErrOverloaded) {
		t.Errorf("a client: %v", err)
	}
	var m node.HeatMap
	getJSON(t, c, 1, "/api/heat", &m)
	if len(m.Missing) != 0 {
		t.Errorf("missing %q", m.Missing)
	}
}
