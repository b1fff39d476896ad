package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// etcdInflightMax is the most that etcd gets: with more it answers "too many requests".
const etcdInflightMax = 1024

// etcdConnections to the leader (writes) and to all nodes (reads) carry the load.
const etcdConnections = 12

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

// etcdCluster is three processes of this program, each with an embedded etcd; the clients are in the driver.
type etcdCluster struct {
	set     settings
	ps      []*process
	writers []*clientv3.Client // connected to the leader
	readers []*clientv3.Client // spread over the nodes
}

func startEtcd(ctx context.Context, s settings, dir string, _ int) (cluster, int64, error) {
	e := &etcdCluster{set: s}
	var err error
	if e.ps, err = startOwn(dir, "etcd", 2*nodes); err != nil {
		return e, 0, err
	}
	args := e.ps[0].cmd.Args
	addrs := strings.Split(args[len(args)-1], ",")[nodes:]
	same := []request{{Do: "open"}, {Do: "open"}, {Do: "open"}}
	if err := callAll(ctx, e.ps, same, nil); err != nil {
		return e, 0, err
	}
	leader, err := e.waitLeader(ctx)
	if err != nil {
		return e, 0, err
	}
	for i := range etcdConnections {
		for _, to := range []struct {
			list *[]*clientv3.Client
			addr string
		}{{&e.writers, addrs[leader]}, {&e.readers, addrs[i%nodes]}} {
			c, err := clientv3.New(clientv3.Config{Endpoints: []string{to.addr}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
			if err != nil {
				return e, 0, err
			}
			*to.list = append(*to.list, c)
		}
	}
	return e, 0, nil
}

func (e *etcdCluster) waitLeader(ctx context.Context) (int, error) {
	res := make([]response, nodes)
	same := []request{{Do: "leaders"}, {Do: "leaders"}, {Do: "leaders"}}
	for {
		if err := callAll(ctx, e.ps, same, res); err != nil {
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

func (e *etcdCluster) processes() []*process { return e.ps }

func (e *etcdCluster) run(ctx context.Context, l load) (outcome, error) {
	value := string(make([]byte, e.set.ValueSize))
	if l.Name == "fill" {
		keys := make([]uint64, e.set.Keys)
		for i := range keys {
			keys[i] = uint64(i)
		}
		return outcome{}, inParallel(keys, 512, func(i uint64) error {
			_, err := e.writers[i%etcdConnections].Put(ctx, string(appendKey(nil, i)), value)
			return err
		})
	}
	before := ownCPU()
	reads := l.reads()
	res := closedLoop(min(l.Inflight, etcdInflightMax), l.Duration, func(rng *rand.Rand) error {
		key, c := string(appendKey(nil, rng.Uint64N(uint64(e.set.Keys)))), rng.IntN(etcdConnections)
		var err error
		if rng.IntN(100) < reads {
			_, err = e.readers[c].Get(ctx, key)
		} else {
			_, err = e.writers[c].Put(ctx, key, value)
		}
		return err
	})
	out := merge([]response{res})
	out.ClientCPU = ownCPU() - before
	return out, nil
}

// ownCPU is what this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (e *etcdCluster) stop() {
	for _, c := range append(e.writers, e.readers...) {
		_ = c.Close() // the servers are killed next
	}
	for _, p := range e.ps {
		p.kill()
	}
}
