package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/statemachine"
)

// Timing of dragonboat: ticks of 100 ms, heartbeats every second, elections after 5 to 10. Shorter ones cost it a lot of CPU at 1,000 shards.
const (
	dragonTickMillis     = 100
	dragonHeartbeatTicks = 10
	dragonElectionTicks  = 50
	dragonTimeout        = 30 * time.Second
)

// dragonNode is one NodeHost with a replica of each shard, 1 to shards. Replica ids are node ids.
type dragonNode struct {
	id       uint64
	dir      string
	addrs    []string
	host     *dragonboat.NodeHost
	shards   uint64
	sessions []*client.Session // by shard-1
}

func (n *dragonNode) do(req request) (response, error) {
	switch req.Do {
	case "open":
		return response{}, n.open()
	case "shards":
		return response{}, n.start(uint64(req.Shards))
	case "leaders":
		known, led := n.leaders()
		return response{Leaders: known, Led: len(led)}, nil
	case "balance":
		return response{}, n.balance()
	case "run":
		return n.run(req)
	}
	return response{}, fmt.Errorf("request %q is unknown", req.Do)
}

// open starts the host with one worker of each kind: on two cores, shared by three nodes, more are slower.
func (n *dragonNode) open() (err error) {
	for _, name := range []string{"raft", "rsm", "transport", "grpc", "dragonboat", "logdb", "config", "settings", "utils", "raftpb", "tests"} {
		logger.GetLogger(name).SetLevel(logger.ERROR)
	}
	db := config.GetSmallMemLogDBConfig()
	db.Shards = 1
	n.host, err = dragonboat.NewNodeHost(config.NodeHostConfig{
		DeploymentID: 1, NodeHostDir: filepath.Join(n.dir, "host"), RTTMillisecond: dragonTickMillis, RaftAddress: n.addrs[n.id-1],
		Expert: config.ExpertConfig{LogDB: db,
			Engine: config.EngineConfig{ExecShards: 1, CommitShards: 1, ApplyShards: 1, SnapshotShards: 1, CloseShards: 1}},
	})
	return err
}

func (n *dragonNode) start(shards uint64) error {
	members := map[uint64]dragonboat.Target{}
	for i, a := range n.addrs {
		members[uint64(i+1)] = a
	}
	for s := uint64(1); s <= shards; s++ {
		err := n.host.StartReplica(members, false, newMapMachine, config.Config{ReplicaID: n.id, ShardID: s, CheckQuorum: true,
			ElectionRTT: dragonElectionTicks, HeartbeatRTT: dragonHeartbeatTicks})
		if err != nil {
			return fmt.Errorf("shard %d: %w", s, err)
		}
		n.sessions = append(n.sessions, n.host.GetNoOPSession(s))
	}
	n.shards = shards
	return nil
}

// leaders counts the shards whose leader is known and lists those that this node leads.
func (n *dragonNode) leaders() (known int, led []uint64) {
	for s := uint64(1); s <= n.shards; s++ {
		id, _, ok, err := n.host.GetLeaderID(s)
		if err != nil || !ok {
			continue
		}
		known++
		if id == n.id {
			led = append(led, s)
		}
	}
	return known, led
}

// balance hands shards that another node should lead to that node.
func (n *dragonNode) balance() error {
	_, led := n.leaders()
	var errs []error
	for _, s := range led {
		if want := s%uint64(len(n.addrs)) + 1; want != n.id {
			errs = append(errs, n.host.RequestLeaderTransfer(s, want))
		}
	}
	return errors.Join(errs...)
}

// run puts this node's part of the load on the shards that it leads.
func (n *dragonNode) run(req request) (response, error) {
	_, led := n.leaders()
	if len(led) == 0 {
		return response{}, errors.New("this node leads no shard")
	}
	value := make([]byte, req.ValueLen)
	perShard := max(1, uint64(req.Keys)/n.shards)
	if req.Load.Name == "fill" {
		return response{}, inParallel(led, 256, func(s uint64) error {
			for i := range perShard {
				if err := n.put(s, i, value); err != nil {
					return err
				}
			}
			return nil
		})
	}
	reads := req.Load.reads()
	return closedLoop(req.Load.Inflight, time.Duration(req.Seconds*float64(time.Second)), func(rng *rand.Rand) error {
		s, key := led[rng.IntN(len(led))], rng.Uint64N(perShard)
		if rng.IntN(100) < reads {
			return n.get(s, key)
		}
		return n.put(s, key, value)
	}), nil
}

func (n *dragonNode) put(shard, key uint64, value []byte) error {
	cmd := append(appendKey(make([]byte, 0, keyLen+len(value)), key), value...)
	rs, err := n.host.Propose(n.sessions[shard-1], cmd, dragonTimeout)
	if err != nil {
		return err
	}
	defer rs.Release()
	if r := <-rs.ResultC(); !r.Completed() {
		return fmt.Errorf("proposal to shard %d did not complete: %+v", shard, r)
	}
	return nil
}

func (n *dragonNode) get(shard, key uint64) error {
	rs, err := n.host.ReadIndex(shard, dragonTimeout)
	if err != nil {
		return err
	}
	defer rs.Release()
	if r := <-rs.ResultC(); !r.Completed() {
		return fmt.Errorf("read index of shard %d did not complete: %+v", shard, r)
	}
	_, err = n.host.ReadLocalNode(rs, string(appendKey(nil, key)))
	return err
}

// mapMachine is the state machine: a map, no disk.
type mapMachine map[string][]byte

func newMapMachine(_, _ uint64) statemachine.IStateMachine { return mapMachine{} }

// Update implements statemachine.IStateMachine.
func (m mapMachine) Update(e statemachine.Entry) (statemachine.Result, error) {
	if len(e.Cmd) < keyLen {
		return statemachine.Result{}, fmt.Errorf("command of %d bytes", len(e.Cmd))
	}
	m[string(e.Cmd[:keyLen])] = e.Cmd[keyLen:]
	return statemachine.Result{Value: 1}, nil
}

// Lookup implements statemachine.IStateMachine.
func (m mapMachine) Lookup(key any) (any, error) { return m[key.(string)], nil }

// SaveSnapshot implements statemachine.IStateMachine. Snapshots are switched off.
func (m mapMachine) SaveSnapshot(io.Writer, statemachine.ISnapshotFileCollection, <-chan struct{}) error {
	return errors.New("snapshots are switched off in this benchmark")
}

// RecoverFromSnapshot implements statemachine.IStateMachine.
func (m mapMachine) RecoverFromSnapshot(io.Reader, []statemachine.SnapshotFile, <-chan struct{}) error {
	return errors.New("snapshots are switched off in this benchmark")
}

// Close implements statemachine.IStateMachine.
func (m mapMachine) Close() error { return nil }
