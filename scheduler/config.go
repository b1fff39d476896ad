package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
)

// Config is what a Scheduler must know. Zero fields get the defaults.
type Config struct {
	Node engine.NodeID
	// Incarnation is this process's, never used before (rule Cluster9).
	Incarnation uint64
	Lanes       int // default 1

	ElectionTimeoutMin engine.Duration // default 1 s; also the length of leases (rule Engine2)
	HeartbeatInterval  engine.Duration // between nodes, and of awake leaders: default 100 ms
	QuiesceAfter       engine.Duration // default 1 s; negative: never
	ClockDriftMax      engine.Duration // default a hundredth of ElectionTimeoutMin, at least 1 ms
	ClockAheadMax      engine.Duration // of the wall clock, before the median of the peers' (rule State8): default 5 s

	// Bounds.
	UncommittedBytesMax int   // per shard: default 16 MiB, at least one write of the largest size
	InflightMax         int   // writes taken and not answered per node: default 16 Ki, less while they take long (pace.go)
	InflightBytesMax    int64 // of them: default 128 MiB, less than what clients may have on their way
	MailboxMax          int   // requests waiting per lane: default 64 Ki
	MailboxBytesMax     int   // of raft frames waiting per lane, over it they are dropped: default 256 MiB
	InflightMessages    int   // append requests in flight per follower: default 64
	EntriesPerMessage   int   // default 1024
	BulkBytes           int   // append requests from this size on are overtaken by others on their way to a peer: default 256 KiB

	// Checkpoints and compaction.
	CheckpointInterval  engine.Duration // how often the budgets are looked at: default 1 s
	CheckpointAge       engine.Duration // a dirty shard is written after so long: default 5 min
	CheckpointBytes     int64           // overlays of the node over which shards are written: default 256 MiB
	CheckpointShard     int             // overlay of one shard over which it is written: default 16 MiB
	CheckpointTxBytes   int             // of one transaction: default 2 MiB
	CheckpointPause     time.Duration   // between transactions: default 5 ms
	LogSegmentsMax      int             // segments of the raft log over which the oldest is emptied: default 8
	ShardLogBytesMax    int64           // log of one shard over which it is purged although a live follower lags: default 64 MiB
	ShardLogEntriesKeep uint64          // entries kept behind a checkpoint for followers that lag a little: default 1024
	SnapshotsMax        int             // sent at a time, and received at a time: default 2
	SnapshotBytesPerSec int             // sent, per node: default 64 MiB; negative: no limit

	Readers int // goroutines that read cold keys: default 4

	Logger *slog.Logger
	// Fatal ends the process: a log or state that cannot be written is never retried (fail-stop). It may be called from any
	// goroutine, more than once. Default: log and exit.
	Fatal func(error)
	// SlowAfter is how long an operation, a turn or a sync takes to be logged as slow, with the stage that took longest: default 1 s,
	// negative: never.
	SlowAfter engine.Duration
	// OnDescriptor is told of every descriptor that was applied, and of every change of the leader that the replica knows. It is called on a lane: it must not block.
	OnDescriptor func(DescriptorEvent)
	// OnStray is told of a shard for whose later replica on this node a message came, while an earlier one is here: that one
	// was probably removed. It is called on a lane, maybe often: it must not block.
	OnStray func(engine.ShardID)
	// OnSilent is told of a shard of which a replica is here that may never become more than a name: one that a message has made, or that waits for
	// its parent to be replayed. It is called on a lane, or by New.
	OnSilent func(engine.ShardID)
	// OnDescriptors is told of all descriptors that one split or merge has changed, in one go (rule Split5); the first is that of the
	// shard whose entry it was. Without it OnDescriptor is called for each.
	OnDescriptors func([]DescriptorEvent)
}

// DescriptorEvent tells what a replica of this node has learnt.
type DescriptorEvent struct {
	Shard      engine.ShardID
	Replica    engine.ReplicaID  // of this node
	Descriptor *shard.Descriptor // immutable
	Leader     engine.NodeID     // 0: unknown
	IsLeader   bool
	// Absorber is set when the shard is no more: this one has absorbed it. Descriptor is then its last.
	Absorber engine.ShardID
}

func (c *Config) defaults() {
	def(&c.Lanes, 1)
	def(&c.ElectionTimeoutMin, engine.Duration(time.Second))
	def(&c.HeartbeatInterval, engine.Duration(100*time.Millisecond))
	if c.QuiesceAfter == 0 {
		c.QuiesceAfter = engine.Duration(time.Second)
	}
	c.QuiesceAfter = max(c.QuiesceAfter, 0)
	if c.SlowAfter == 0 {
		c.SlowAfter = engine.Duration(time.Second)
	}
	def(&c.ClockDriftMax, max(c.ElectionTimeoutMin/100, engine.Duration(time.Millisecond)))
	def(&c.ClockAheadMax, engine.Duration(5*time.Second))
	def(&c.UncommittedBytesMax, 16<<20)
	c.UncommittedBytesMax = max(c.UncommittedBytesMax, shard.WriteBytesMax+1<<10)
	def(&c.InflightMax, 16<<10)
	def(&c.InflightBytesMax, 128<<20)
	def(&c.MailboxMax, 64<<10)
	def(&c.MailboxBytesMax, 256<<20)
	def(&c.InflightMessages, 64)
	def(&c.EntriesPerMessage, 1024)
	def(&c.BulkBytes, 256<<10)
	def(&c.CheckpointInterval, engine.Duration(time.Second))
	def(&c.CheckpointAge, engine.Duration(5*time.Minute))
	def(&c.CheckpointBytes, 256<<20)
	def(&c.CheckpointShard, 16<<20)
	def(&c.CheckpointTxBytes, 2<<20)
	def(&c.CheckpointPause, 5*time.Millisecond)
	def(&c.LogSegmentsMax, 8)
	def(&c.ShardLogBytesMax, 64<<20)
	def(&c.ShardLogEntriesKeep, 1024)
	def(&c.SnapshotsMax, 2)
	def(&c.Readers, 4)
	if c.SnapshotBytesPerSec == 0 {
		c.SnapshotBytesPerSec = 64 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Fatal == nil {
		logger := c.Logger
		c.Fatal = func(err error) {
			logger.Error("fatal", "err", err)
			os.Exit(1)
		}
	}
}

func def[T ~int | ~int64 | ~uint64](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Clock tells the time.
type Clock interface {
	// Now is CLOCK_BOOTTIME: monotonic, and goes on while the machine is suspended (rule Engine2).
	Now() engine.Instant
	// Wall is Unix milliseconds, for stamps.
	Wall() int64
}

// SystemClock is the machine's.
type SystemClock struct{}

// Now implements Clock.
func (SystemClock) Now() engine.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(bootClock, &ts); err != nil {
		panic(err) // every system that Go runs on has it
	}
	return engine.Instant(ts.Nano())
}

// Wall implements Clock.
func (SystemClock) Wall() int64 { return time.Now().UnixMilli() }

// Network is what the scheduler needs of the transport. Methods must not block, OpenSnapshot and what it returns excepted.
type Network interface {
	// SendRaft queues messages; false if they were dropped. Those that are bulk are overtaken by others, but not by each other, and are the
	// network's from then on; others are copied.
	SendRaft(node engine.NodeID, lane int, msgs []byte, bulk bool) bool
	SendHeartbeat(node engine.NodeID, body []byte) bool
	OpenSnapshot(ctx context.Context, node engine.NodeID, header []byte) (SnapshotWriter, error)
}

// SnapshotWriter sends one snapshot. Write waits while too much is not acknowledged by the receiver (rule Live6).
type SnapshotWriter interface {
	Write(ctx context.Context, chunk []byte) error
	// Finish waits until the receiver has taken all of it.
	Finish(ctx context.Context) error
	Abort(reason string)
}

// SnapshotReader receives one snapshot.
type SnapshotReader interface {
	// Next returns the next chunk, valid until the next call; io.EOF at the end.
	Next(ctx context.Context) ([]byte, error)
	// Finish tells the sender how it ended.
	Finish(err error) error
}

// Deps are the parts that a Scheduler works with. They are closed by their owner, after Stop.
type Deps struct {
	Log      *raftlog.Log
	Recovery *raftlog.Recovery // of Log; nil means empty
	State    state.Store
	Network  Network
	Clock    Clock // nil: SystemClock
	// Spawn runs a task that may wait for a disk. Nil: goroutines, which Stop waits for. A simulator runs tasks itself.
	Spawn func(task func())
	// ReadJob runs a read of cold keys and then calls job.Done. Nil: a pool of Config.Readers goroutines.
	ReadJob func(job *state.ReadJob)
	// Probe watches the lanes, for tests. Nil: nobody does.
	Probe Probe
}

// Probe watches what happens in a lane. Its methods are called on the lane; they must not block, nor keep what they are given.
type Probe interface {
	// Fed is called when an event was handled and all its commands have run.
	Fed(k store.Key, eng *engine.Engine, ev engine.Event)
	// Command is called before a command runs.
	Command(k store.Key, eng *engine.Engine, c *engine.Command)
	// Applied is called for each entry that was applied, with what the machine is now and what it answered.
	Applied(k store.Key, id engine.LogID, kind engine.EntryKind, payload []byte, m *shard.Machine, ans *shard.Answer)
	// Linked is called when a snapshot has become the applied state.
	Linked(k store.Key, id engine.LogID)
	// Removed is called when the tombstone of a replica is durable.
	Removed(k store.Key)
}

// Errors.
var (
	// ErrStopped: the scheduler was stopped.
	ErrStopped = errors.New("scheduler is stopped")
	// ErrExists: the node has a replica of this shard already.
	ErrExists = errors.New("shard exists on this node")

	errIncarnation = errors.New("node heartbeat of another incarnation than its session")
)
