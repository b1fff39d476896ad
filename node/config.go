package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kiloraft/kiloraft/internal/logs"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// Config says how a node runs. DataDir and Listen must be set; everything else has a default, see the fields.
type Config struct {
	// DataDir holds all that the node must not lose. It is made if it does not exist.
	DataDir string
	// Listen is the address for peers and clients, host:port. Port 0 takes a free one.
	Listen string
	// Advertise is the address that others are told; default: that of the listener.
	Advertise string
	// HTTP is the address of the console, /livez, /readyz, /metrics and /debug/pprof. Empty: none.
	HTTP string
	// Redis is the address for Redis clients. Empty: none.
	Redis string
	// RedisTimeout bounds how long a command of a Redis client tries. Default 5 s.
	RedisTimeout time.Duration
	// Join are addresses of other nodes: first hints for finding a cluster, or the other nodes that wait for one.
	Join []string
	// Name and Labels describe the node to operators and to placement. Default name: node-<first digits of its identity>.
	Name   string
	Labels map[string]string
	// TLSCA, TLSCert and TLSKey name files: the certificates of the authorities, this node's certificate and its key. They go together,
	// are read again when they change, and turn security on: TLS on every connection, peers by node certificate, clients
	// by certificate or password. Empty: everything is plain text, and everybody may do everything.
	TLSCA, TLSCert, TLSKey string
	// AuditLog is a file that gets a JSON line for each action of an administrator. Empty: they go to Logger.
	AuditLog string

	// Lanes of the scheduler; 0: its default.
	Lanes int
	// InflightMax is how many writes the node takes before it has answered them, and InflightBytesMax their bytes; over that writes are refused
	// as overloaded. 0: the scheduler's defaults.
	InflightMax      int
	InflightBytesMax int64
	// ElectionTimeout is the least silence of a leader after which others campaign; default 1 s.
	ElectionTimeout time.Duration
	// HeartbeatInterval between nodes; default a tenth of ElectionTimeout.
	HeartbeatInterval time.Duration
	// QuiesceAfter is how long a shard is idle before it sleeps; 0: default, negative: never.
	QuiesceAfter time.Duration
	// LogSegmentBytes and LogCacheBytes size the raft log; 0: its defaults.
	LogSegmentBytes int64
	LogCacheBytes   int64
	// LogKeepBytes bounds what the log keeps of a shard behind its checkpoint for followers that lag; 0: the default.
	LogKeepBytes int64
	// LogBytesMax is the size of the raft log from which on its oldest segment is freed by checkpoints, and OverlayBytesMax the memory for what
	// was applied since the last checkpoint, over which shards are checkpointed; 0: the scheduler's default.
	LogBytesMax     int64
	OverlayBytesMax int64

	// RepairAfter is how long a node may be down before its replicas are replaced; default 5 min.
	RepairAfter time.Duration
	// AutoSplitSize is the size in bytes over which a shard is split by itself, and AutoSplitLoad the requests per second; 0: the
	// default (64 MiB; 20,000), negative: never.
	AutoSplitSize int64
	AutoSplitLoad int64
	// AutoMergeAfter is how long two neighbours must be small and cold before they are merged by themselves, if an automatic split has
	// made the right one; 0: the default (1 h), negative: never. Shards that an operator has made stay.
	AutoMergeAfter time.Duration
	// NoReplicaBalance keeps the balancer from levelling replicas unasked.
	NoReplicaBalance bool
	// NoLeaderBalance keeps the balancer from levelling leaderships unasked.
	NoLeaderBalance bool

	// Logger; default: that of Logs, else none.
	Logger *slog.Logger
	// Logs, if set, lets operators read the last lines and change the level.
	Logs *logs.Log
	// SlowAfter is how long an operation takes to be logged as slow; 0: 1 s, negative: never.
	SlowAfter time.Duration
	// Settings, if set, returns the effective configuration without secrets, for debug bundles.
	Settings func() []byte
	// Fatal is called once, from any goroutine, when the node cannot go on (a disk that failed). The process should end. The
	// default logs and exits with status 1.
	Fatal func(error)

	// For tests. Listener and HTTPListener are used instead of Listen and HTTP; tune changes what the scheduler gets; fault is asked
	// between the steps of an init; dial opens connections to other nodes; clock replaces the system's; loadEvery is how often
	// the driver looks at loads, and syncEvery how often a node looks into meta; stateFree says how much space there is for the state,
	// which grows in steps of stateGrow.
	Listener     net.Listener
	HTTPListener net.Listener
	tune         func(*scheduler.Config)
	fault        func(step string) error
	loadEvery    time.Duration
	syncEvery    time.Duration
	unobserved   bool // no samples but those that a test takes
	httpWriteMax time.Duration
	dial         func(ctx context.Context, addr string) (net.Conn, error)
	clock        scheduler.Clock
	stateFree    func() (int64, error)
	stateGrow    int
}

// Errors of Open.
var (
	// ErrDirInUse: another process, which the message names, has the data directory.
	ErrDirInUse = errors.New("data directory in use")
	// ErrConfig: a field of Config makes no sense.
	ErrConfig = errors.New("bad configuration")
	// ErrOtherCluster: the data directory belongs to another cluster than the peers do.
	ErrOtherCluster = errors.New("data directory of another cluster")
	// ErrRefused: the cluster has refused this node for good: its data is a copy, or it was removed (rule Cluster9).
	ErrRefused = errors.New("refused")
	// ErrAddrInUse: another process listens on the address.
	ErrAddrInUse = errors.New("address in use")
	// ErrRecovering: a recovery of last resort was begun in the data directory and was interrupted.
	ErrRecovering = errors.New("a recovery is not finished")
	// ErrBadDir: the data directory holds something that is not a node's.
	ErrBadDir = errors.New("not a data directory of kiloraft")
)

func (c *Config) fill() error {
	if c.DataDir == "" {
		return fmt.Errorf("%w: no data directory", ErrConfig)
	}
	if c.Listen == "" {
		return fmt.Errorf("%w: no address to listen on", ErrConfig)
	}
	for _, a := range append([]string{c.Listen}, c.Join...) {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return fmt.Errorf("%w: address %q: %v", ErrConfig, a, err)
		}
	}
	if c.Advertise != "" {
		if host, port, err := net.SplitHostPort(c.Advertise); err != nil || host == "" || port == "" || port == "0" {
			return fmt.Errorf("%w: advertised address %q: host and port needed", ErrConfig, c.Advertise)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") || c.TLSCert != "" && c.TLSCA == "" {
		return fmt.Errorf("%w: the files of authority, certificate and key go together", ErrConfig)
	}
	if strings.ContainsAny(c.Name, "\x00\n") || len(c.Name) > 200 {
		return fmt.Errorf("%w: name %q", ErrConfig, c.Name)
	}
	if c.ElectionTimeout == 0 {
		c.ElectionTimeout = time.Second
	}
	if c.HeartbeatInterval == 0 {
		c.HeartbeatInterval = c.ElectionTimeout / 10
	}
	if c.ElectionTimeout < 0 || c.HeartbeatInterval < 0 || c.HeartbeatInterval*2 > c.ElectionTimeout {
		return fmt.Errorf("%w: an election timeout of %v needs a heartbeat interval of at most half of it, not %v", ErrConfig, c.ElectionTimeout, c.HeartbeatInterval)
	}
	if c.Logger == nil && c.Logs != nil {
		c.Logger = c.Logs.Logger()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.clock == nil {
		c.clock = scheduler.SystemClock{}
	}
	if c.Fatal == nil {
		log := c.Logger
		c.Fatal = func(err error) {
			log.Error("node cannot go on", "err", err)
			fmt.Fprintln(os.Stderr, "kiloraft: fatal:", err)
			os.Exit(1)
		}
	}
	return nil
}

// logSegmentsMax is LogBytesMax in segments.
func (c *Config) logSegmentsMax() int {
	if c.LogBytesMax == 0 {
		return 0
	}
	size := c.LogSegmentBytes
	if size == 0 {
		size = raftlog.SegmentBytesDefault
	}
	return int(max(2, c.LogBytesMax/size))
}

// hostOf returns the host of an address.
func hostOf(addr string) (string, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("%w: address %q: %v", ErrConfig, addr, err)
	}
	return host, nil
}

// The layout of a data directory. Offline tools (debug log, state, verify) use the paths.
const (
	lockFile  = "LOCK"
	stateFile = "state.db"
	logDir    = "log"
)

// StatePath returns where a data directory has its state, and LogPath where its raft log is.
func StatePath(dataDir string) string { return filepath.Join(dataDir, stateFile) }

// LogPath returns where a data directory has its raft log.
func LogPath(dataDir string) string { return filepath.Join(dataDir, logDir) }
