package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// metaClient reads and writes the meta shard. It finds the leader by asking the replicas that the newest known descriptor names, and
// retries until its context ends.
type metaClient struct {
	// send asks a node, this one included; errors are package shard's, or the transport's.
	send func(ctx context.Context, node engine.NodeID, method uint16, flags uint8, body []byte) ([]byte, error)
	// descriptor returns the newest known descriptor of the meta shard; saw takes one.
	descriptor func() *shard.Descriptor
	saw        func(*shard.Descriptor)
	// nodes returns the nodes that live, to be asked where the meta shard is.
	nodes func() []engine.NodeID

	mu     sync.Mutex
	leader engine.NodeID
	turn   int
	// free holds the sessions that no write is using. A session has one write at a time, so that a retry is never applied twice; several
	// of them let the writes of a driver, which moves many shards at once, share a sync of the log.
	free chan *metaSession
}

// metaSession belongs to who has taken it from metaClient.free.
type metaSession struct {
	id  shard.SessionID
	seq uint64
}

// metaSessionsMax is how many writes of a node to the meta shard are under way at a time.
const metaSessionsMax = 16

func newMetaSessions() chan *metaSession {
	free := make(chan *metaSession, metaSessionsMax)
	for range metaSessionsMax {
		free <- &metaSession{}
	}
	return free
}

// next renews the session when it is due, and counts a write.
func (s *metaSession) next(now time.Time) {
	if s.id.IsZero() || now.UnixMilli()-s.id.Issued() > shard.SessionHorizon.Milliseconds()/2 {
		var random [8]byte
		_, _ = rand.Read(random[:])
		s.id, s.seq = shard.NewSessionID(now.UnixMilli(), binary.LittleEndian.Uint64(random[:])), 0
	}
	s.seq++
}

// attemptMax bounds one attempt; a node that hangs must not use up the caller's time.
const attemptMax = 2 * time.Second

// do sends a request to the leader, retrying until ctx ends. encode is called for each attempt with the version to name.
func (m *metaClient) do(ctx context.Context, method uint16, encode func(version uint64) []byte) ([]byte, error) {
	var last error = shard.ErrUnavailable
	tries := 0
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		d := m.descriptor()
		if d != nil && len(d.Replicas) > 0 {
			node := m.target(d)
			actx, cancel := context.WithTimeout(ctx, attemptMax)
			body, err := m.send(actx, node, method, 0, encode(d.Version))
			cancel()
			if err == nil {
				return body, nil
			}
			if final(err) {
				return nil, err
			}
			last = err
			if tries++; tries%4 == 0 || errors.Is(err, shard.ErrShardNotFound) {
				m.locate(ctx, node, err)
			}
			if m.redirect(node, err) {
				wait = 5 * time.Millisecond
				continue
			}
		}
		if sleep(ctx, wait) != nil {
			return nil, &shard.UnavailableError{Reason: fmt.Sprintf("meta shard: %v", last)}
		}
	}
}

// locate asks a node for the newest descriptor of the meta shard that it knows: the one that holds no replica any more, or any that
// lives.
func (m *metaClient) locate(ctx context.Context, node engine.NodeID, err error) {
	if !errors.Is(err, shard.ErrShardNotFound) {
		list := m.nodes()
		if len(list) == 0 {
			return
		}
		m.mu.Lock()
		m.turn++
		node = list[m.turn%len(list)]
		m.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(ctx, attemptMax/4)
	defer cancel()
	q := api.MapRequest{Limit: 1}
	body, err := m.send(ctx, node, api.MethodMap, 0, q.Append(nil))
	var page api.MapPage
	if err == nil && api.Decode(body, &page) == nil && page.Meta.Shard == shard.MetaShardID {
		m.saw(&page.Meta)
	}
}

// target returns the node to ask: the leader if one is known, else one replica after the other.
func (m *metaClient) target(d *shard.Descriptor) engine.NodeID {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leader != 0 {
		return m.leader
	}
	m.turn++
	return d.Replicas[m.turn%len(d.Replicas)].Node
}

// redirect learns from an error of node, and tells whether to try again at once.
func (m *metaClient) redirect(node engine.NodeID, err error) bool {
	var notLeader *shard.NotLeaderError
	var moved *shard.MovedError
	if errors.As(err, &moved) {
		for i := range moved.Descriptors {
			m.saw(&moved.Descriptors[i])
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.As(err, &notLeader) && notLeader.Leader != 0 && notLeader.Leader != node && m.leader != notLeader.Leader {
		m.leader = notLeader.Leader
		return true
	}
	m.leader = 0
	return false
}

// final tells whether err is an answer that no retry changes.
func final(err error) bool {
	for _, e := range []error{shard.ErrInvalid, shard.ErrTooLarge, shard.ErrConditionFailed, shard.ErrSessionExpired, shard.ErrCrossShard} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// get returns the value and version of a key; version 0: it does not exist.
func (m *metaClient) get(ctx context.Context, key []byte) ([]byte, uint64, error) {
	keys := [][]byte{key}
	body, err := m.do(ctx, api.MethodRead, func(v uint64) []byte {
		return shard.AppendRead(nil, &shard.Read{Shard: shard.MetaShardID, Version: v, Keys: keys})
	})
	if err != nil {
		return nil, 0, err
	}
	entries, err := shard.DecodeAnswer(body, keys, nil)
	if err != nil || len(entries) != 1 {
		return nil, 0, fmt.Errorf("%w: answer of the meta shard: %d entries, %v", shard.ErrInternal, len(entries), err)
	}
	return entries[0].Value, entries[0].Version, nil
}

// scan calls f with each item of [start, end).
func (m *metaClient) scan(ctx context.Context, start, end []byte, f func(key, value []byte) error) error {
	return m.entries(ctx, start, end, func(e *shard.Entry) error { return f(e.Key, e.Value) })
}

// entries calls f with each entry of [start, end).
func (m *metaClient) entries(ctx context.Context, start, end []byte, f func(e *shard.Entry) error) error {
	for {
		body, err := m.do(ctx, api.MethodScan, func(v uint64) []byte {
			return shard.AppendScan(nil, &shard.Scan{Shard: shard.MetaShardID, Version: v, Start: start, End: end})
		})
		if err != nil {
			return err
		}
		var page shard.Page
		if err := shard.DecodePage(body, &page); err != nil {
			return fmt.Errorf("%w: page of the meta shard: %w", shard.ErrInternal, err)
		}
		for i := range page.Entries {
			if err := f(&page.Entries[i]); err != nil {
				return err
			}
		}
		if page.Done {
			return nil
		}
		if bytes.Compare(page.CompleteTo, start) <= 0 {
			return fmt.Errorf("%w: a scan of the meta shard does not advance", shard.ErrInternal)
		}
		start = bytes.Clone(page.CompleteTo)
	}
}

// write applies a conditional write. ErrConditionFailed is an answer; anything else that is not nil may have happened.
func (m *metaClient) write(ctx context.Context, conditions []shard.Condition, ops []shard.Op) error {
	var s *metaSession
	select {
	case s = <-m.free:
	case <-ctx.Done():
		return &shard.UnavailableError{Reason: fmt.Sprintf("meta shard: %d writes of this node are under way", metaSessionsMax)}
	}
	defer func() { m.free <- s }()
	s.next(time.Now())
	w := shard.Write{Shard: shard.MetaShardID, Session: s.id, Seq: s.seq, Lowest: s.seq, Conditions: conditions, Ops: ops}
	body, err := m.do(ctx, api.MethodWrite, func(v uint64) []byte {
		w.Version = v
		return shard.AppendWrite(nil, &w)
	})
	if err != nil {
		s.id = shard.SessionID{} // its sequence may be in use
		return err
	}
	var res shard.Result
	if err := shard.DecodeResult(body, &res); err != nil {
		return fmt.Errorf("%w: answer of the meta shard: %w", shard.ErrInternal, err)
	}
	return res.Err()
}

// put is a helper for ops.
func put(key, value []byte) shard.Op { return shard.Op{Kind: shard.OpPut, Key: key, Value: value} }
