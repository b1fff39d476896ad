package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
)

// etcdInflightMax is the most that etcd gets: with more it answers "too many requests".
const etcdInflightMax = 1024

// etcdNode is one embedded server. Addresses: peers of all nodes, then clients of all nodes.
type etcdNode struct {
	id     int
	dir    string
	addrs  []string
	server *embed.Etcd
}

func (n *etcdNode) do(req request) (response, error) {
	switch req.Do {
	case "open":
		return response{}, n.open()
	case "leaders":
		s := n.server.Server
		res := response{}
		if s.Lead() != 0 {
			res.Leaders = 1
		}
		if s.Lead() == uint64(s.MemberID()) {
			res.Led = 1
		}
		return res, nil
	case "run":
		return n.run(req)
	}
	return response{}, fmt.Errorf("request %q is unknown", req.Do)
}

func (n *etcdNode) open() error {
	c := embed.NewConfig()
	c.Name, c.Dir, c.LogLevel, c.LogOutputs = strconv.Itoa(n.id), n.dir, "error", []string{"stderr"}
	c.QuotaBackendBytes = 8 << 30
	peerURL, clientURL := n.url(n.id-1), n.url(nodes+n.id-1)
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peerURL}, []url.URL{peerURL}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{clientURL}, []url.URL{clientURL}
	var members []string
	for i := range nodes {
		members = append(members, fmt.Sprintf("%d=http://%s", i+1, n.addrs[i]))
	}
	c.InitialCluster = strings.Join(members, ",")
	var err error
	if n.server, err = embed.StartEtcd(c); err != nil {
		return err
	}
	select {
	case <-n.server.Server.ReadyNotify():
		return nil
	case err := <-n.server.Err():
		return err
	}
}

func (n *etcdNode) url(i int) url.URL { return url.URL{Scheme: "http", Host: n.addrs[i]} }

// run puts load on the server in this process, beside its gRPC door.
func (n *etcdNode) run(req request) (response, error) {
	ctx, s := context.Background(), n.server.Server
	value := make([]byte, req.ValueLen)
	put := func(i uint64) error {
		_, err := s.Put(ctx, &etcdserverpb.PutRequest{Key: appendKey(nil, i), Value: value})
		return err
	}
	if req.Load.Name == "fill" {
		keys := make([]uint64, req.Keys)
		for i := range keys {
			keys[i] = uint64(i)
		}
		return response{}, inParallel(keys, 512, put)
	}
	reads := req.Load.reads()
	return closedLoop(req.Load.Inflight, time.Duration(req.Seconds*float64(time.Second)), func(rng *rand.Rand) error {
		key := rng.Uint64N(uint64(req.Keys))
		if rng.IntN(100) < reads {
			_, err := s.Range(ctx, &etcdserverpb.RangeRequest{Key: appendKey(nil, key)})
			return err
		}
		return put(key)
	}), nil
}

// etcdCluster is three processes of this program, each with an embedded etcd and clients.
type etcdCluster struct {
	embedded
	leader int
}

func startEtcd(ctx context.Context, s settings, dir string, _ int) (cluster, int64, error) {
	e := &etcdCluster{embedded: embedded{set: s}}
	var err error
	if e.ps, err = startOwn(dir, "etcd", 2*nodes); err != nil {
		return e, 0, err
	}
	if err := e.all(ctx, request{Do: "open"}, nil); err != nil {
		return e, 0, err
	}
	e.leader, err = e.waitLeader(ctx)
	return e, 0, err
}

func (e *etcdCluster) waitLeader(ctx context.Context) (int, error) {
	res := make([]response, nodes)
	for {
		if err := e.all(ctx, request{Do: "leaders"}, res); err != nil {
			return 0, err
		}
		for i := range res {
			if res[i].Led == 1 && res[0].Leaders+res[1].Leaders+res[2].Leaders == nodes {
				return i, nil
			}
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return 0, fmt.Errorf("no leader: %w", err)
		}
	}
}

// prepare has nothing to do.
func (e *etcdCluster) prepare(context.Context, int) error { return nil }

// run spreads reads over the nodes; what writes runs at the leader.
func (e *etcdCluster) run(ctx context.Context, l load) (outcome, error) {
	l.Inflight = min(l.Inflight, etcdInflightMax)
	if l.Name == "read" {
		return e.embedded.run(ctx, l)
	}
	res, err := e.ps[e.leader].call(ctx, request{Do: "run", Load: l, Seconds: l.Duration.Seconds(), Keys: e.set.Keys, ValueLen: e.set.ValueSize})
	if err != nil {
		return outcome{}, err
	}
	return merge([]response{res}), nil
}
