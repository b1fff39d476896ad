package scheduler

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
)

var errTODO = errors.New("not implemented")

type (
	writerState  struct{ busy atomic.Int64 }
	checkpointer struct{ wake chan struct{} }
	snapshots    struct{}
	readQueue    struct{}
	pendingRead  struct{}
	applyState   struct {
		done    bool
		applied engine.LogID
	}
	ckptState   struct{}
	snapshotOut struct{}
	snapshotIn  struct{}
)

func New(cfg Config, deps Deps) (*Scheduler, error)                                    { return nil, errTODO }
func (s *Scheduler) Stop(ctx context.Context) error                                    { return errTODO }
func (s *Scheduler) FlushLog() bool                                                    { return false }
func (s *Scheduler) SealLog() bool                                                     { return false }
func (s *Scheduler) watchWriter(now engine.Instant)                                    {}
func (c *checkpointer) look()                                                          {}
func (c *checkpointer) step() bool                                                     { return false }
func (l *Lane) explainPanic()                                                          {}
func (l *Lane) logFlushed(c *raftlog.Completion)                                       {}
func (l *Lane) receive(f *frame)                                                       {}
func (l *Lane) request(r *Request)                                                     {}
func (l *Lane) proposeAll()                                                            {}
func (l *Lane) readAll()                                                               {}
func (l *Lane) applyRange(r *replica, first, last uint64)                              {}
func (l *Lane) installSnapshot(r *replica, c *engine.Command)                          {}
func (l *Lane) rejectSnapshot(r *replica, token uint64)                                {}
func (l *Lane) sendSnapshot(r *replica, to engine.Peer, v engine.Vote, stream uint64)  {}
func (l *Lane) leadershipChanged(r *replica)                                           {}
func (l *Lane) refused(r *replica, c *engine.Command)                                  {}
func (l *Lane) readReady(r *replica, token uint64)                                     {}
func (l *Lane) failReads(r *replica, token uint64)                                     {}
func (l *Lane) appendWrites(r *replica, c *engine.Command)                             {}
func (l *Lane) status(r *replica) ReplicaStatus                                        { return ReplicaStatus{} }
func (l *Lane) transfer(id engine.ShardID, to engine.NodeID) error                     { return errTODO }
func (l *Lane) checksum(id engine.ShardID, f func(state.Content, engine.LogID, error)) {}
func (s *Scheduler) CreateReplicas(ctx context.Context, list []NewReplica) error       { return errTODO }

// Snapshot takes a snapshot that a peer sends; it returns when it was taken or refused.
func (s *Scheduler) Snapshot(from engine.NodeID, incarnation uint64, header []byte, r SnapshotReader) {
}
