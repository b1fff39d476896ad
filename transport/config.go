package transport

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// ID is a 128-bit random number: the id of a cluster, or the identity of a node (rule Cluster7). Zero is none.
type ID [16]byte

// Config is what a Transport is made of. Only Identity, Incarnations and Dial are required; a node that is not yet in a
// cluster leaves ClusterID and Node zero and calls Join later.
type Config struct {
	ClusterID ID
	Node      engine.NodeID
	Identity  ID
	// Incarnations are the nonces of the starts of this node, oldest first, at most IncarnationsMax; the last is this
	// process's (rule Cluster9).
	Incarnations []uint64
	// AdvertiseAddr is where others reach this node.
	AdvertiseAddr string
	// VersionMin and VersionMax are the protocol versions that are offered; zero means those that this package speaks.
	VersionMin, VersionMax uint64
	// TLS, if set, is used for both sides of every connection, with version 1.3 at least.
	TLS    TLS
	Logger *slog.Logger
	// Dial opens a connection. Nil means TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Authenticate, if set, is asked who calls, before anything else is believed of a hello, on a goroutine that may wait as long as
	// the handshake's deadline allows. What it returns is what Request.Identity returns; a client's connection ends at until, if
	// that is not zero. An error that is not a *Refused is sent as ReasonDenied.
	Authenticate func(ctx context.Context, c *Credentials) (identity any, until time.Time, err error)
	// Accept, if set, is asked about every peer, dialled or not, before a session with it begins. It persists the newest
	// incarnation that it accepts, and refuses whoever's list lacks the one that it accepted last (rule Cluster9), or who was
	// removed. An error that is not a *Refused is sent as ReasonOther.
	Accept func(PeerInfo) error
	// Attesting, if set, tells whether this incarnation of the node is alive; a newer one is refused that long (rule Cluster9).
	// Nil means that something was received from it within AttestMax.
	Attesting func(node engine.NodeID, incarnation uint64) bool
	// Expect, if set, tells which methods are answered at once, and how big an answer to them may be, as far as one knows: 0 for all others. Of
	// those a client may have few in flight until it is known how big its answers are. It may be called from any goroutine.
	Expect func(method uint16) int
	// OnRefused, if set, is told when a peer refuses this node, so that a refusal can be made durable (rule Cluster9).
	OnRefused func(addr string, r *Refused)

	Limits Limits
}

// TLS gives the configuration of each connection when it begins, so that certificates can change. The name of the server is
// filled in by whoever dials.
type TLS interface {
	Server() *tls.Config
	Client() *tls.Config
}

// Credentials are what a caller has shown. Without a certificate TLS has no peer certificates; without a user, User is empty.
type Credentials struct {
	Peer       bool // calls as a node's peer, not as a client
	User       string
	Password   []byte
	TLS        *tls.ConnectionState // nil without TLS
	RemoteAddr net.Addr
}

// IncarnationsMax is how many incarnations a handshake carries.
const IncarnationsMax = 64

// PeerInfo is what a handshake says of the other side.
type PeerInfo struct {
	ClusterID     ID
	Node          engine.NodeID
	Identity      ID
	Incarnations  []uint64 // newest last
	AdvertiseAddr string
	Version       uint64 // agreed
	RemoteAddr    net.Addr
	TLS           *tls.ConnectionState // nil without TLS
}

// Incarnation is the newest of the list.
func (p *PeerInfo) Incarnation() uint64 {
	if len(p.Incarnations) == 0 {
		return 0
	}
	return p.Incarnations[len(p.Incarnations)-1]
}

// Limits bound what peers and clients can make a node hold, and how long it waits. Zero fields get the defaults.
type Limits struct {
	FrameBytesMax      int           // largest frame accepted from a peer (64 MiB)
	ClientFrameMax     int           // largest frame accepted from a client, and so the largest request (32 MiB)
	FrameBytesTarget   int           // pending messages are merged into frames of about this size (1 MiB)
	WriteBytesMax      int           // one Write carries at most so much, so that heartbeats get in between (256 KiB)
	OutboxBytesMax     int           // raft bytes waiting per peer in small messages, and as much in large ones (32 MiB)
	HeartbeatBytesMax  int           // heartbeat bytes waiting per peer (4 MiB)
	RequestBytesMax    int           // request bytes waiting per peer or client connection in small messages, and as much in large ones (16 MiB)
	AnswerBytesMax     int           // answer bytes waiting per connection, over which it is closed (64 MiB)
	InFlightMax        int           // requests being served per connection (16384)
	InFlightBytesMax   int           // bytes of requests being served per connection (64 MiB)
	SnapshotWindow     int           // snapshot bytes per session that the receiving application has not acknowledged (256 KiB)
	SnapshotChunkMax   int           // largest chunk of a snapshot (16 MiB)
	SnapshotsMax       int           // snapshots received at a time per session (8)
	ClientsMax         int           // client connections, over which those that have been silent for longest are closed (10000)
	ClientsBytesMax    int           // frames, requests and answers of all clients together, over which the one that holds most is closed (256 MiB)
	BigBytesMax        int           // answers in the making for clients that are known for big ones, which wait for each other (16 MiB)
	BigFramesMax       int           // frames of over twice FrameBytesTarget being read from clients, all together, which wait for each other (64 MiB)
	BigPatience        time.Duration // while others wait, who takes nothing of a big answer, or sends nothing of a big frame, for so long is cut off (2 s)
	BigTime            time.Duration // while others wait, a big frame that has not arrived after so long is given up, and its client cut off (30 s)
	IdleMin            time.Duration // at ClientsMax, who has been silent for so long makes room for another client (10 s)
	HandshakesMax      int           // handshakes of others in progress, over which the oldest is given up (256)
	PeerWindow         int           // yamux receive window of a peer's stream (4 MiB)
	ClientWindow       int           // yamux receive window of a client's stream (1 MiB)
	HandshakeTimeout   time.Duration // 5 s
	DialTimeout        time.Duration // 5 s
	WriteTimeout       time.Duration // a write that takes longer ends the session (10 s)
	SilenceMax         time.Duration // a peer that sends nothing for so long is gone (5 s)
	AttestMax          time.Duration // see Config.Attesting (1 s)
	PingInterval       time.Duration // a peer to which nothing was sent for so long gets an empty frame (1 s)
	BackoffMin         time.Duration // redialling (20 ms)
	BackoffMax         time.Duration // (2 s)
	RequestDeadlineMax time.Duration // of a request that carries none, or a later one (60 s)
}

func def[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

const mib = 1 << 20

func (l *Limits) defaults() {
	def(&l.FrameBytesMax, 64*mib)
	def(&l.ClientFrameMax, 32*mib)
	def(&l.FrameBytesTarget, mib)
	def(&l.WriteBytesMax, 256<<10)
	def(&l.OutboxBytesMax, 32*mib)
	def(&l.HeartbeatBytesMax, 4*mib)
	def(&l.RequestBytesMax, 16*mib)
	def(&l.AnswerBytesMax, 64*mib)
	def(&l.InFlightMax, 16384)
	def(&l.InFlightBytesMax, 64*mib)
	def(&l.SnapshotWindow, 256<<10)
	def(&l.SnapshotChunkMax, 16*mib)
	def(&l.SnapshotsMax, 8)
	def(&l.ClientsMax, 10000)
	def(&l.ClientsBytesMax, 256<<20)
	def(&l.BigBytesMax, 16<<20)
	def(&l.BigFramesMax, 64*mib)
	def(&l.BigPatience, 2*time.Second)
	def(&l.BigTime, 30*time.Second)
	def(&l.IdleMin, 10*time.Second)
	def(&l.HandshakesMax, 256)
	def(&l.PeerWindow, 4*mib)
	def(&l.ClientWindow, mib)
	l.PeerWindow, l.ClientWindow = max(l.PeerWindow, windowMin), max(l.ClientWindow, windowMin)
	def(&l.HandshakeTimeout, 5*time.Second)
	def(&l.DialTimeout, 5*time.Second)
	def(&l.WriteTimeout, 10*time.Second)
	def(&l.SilenceMax, 5*time.Second)
	def(&l.AttestMax, time.Second)
	def(&l.PingInterval, time.Second)
	def(&l.BackoffMin, 20*time.Millisecond)
	def(&l.BackoffMax, 2*time.Second)
	def(&l.RequestDeadlineMax, time.Minute)
}

// windowMin is the smallest window that yamux takes.
const windowMin = 256 << 10

// Handler is what a node does with what arrives. Its methods are called on the goroutine that reads the stream in question
// and must not block, Snapshot excepted; while one does, nothing more is read from that stream. For one session, PeerConnected
// comes before and PeerDisconnected after all other calls; of two sessions with a node, the later begins after the earlier
// has ended.
type Handler interface {
	// RaftFrame gets the concatenated messages of one frame; package wire reads them. The body belongs to the callee.
	RaftFrame(from engine.NodeID, incarnation uint64, body []byte)
	// Heartbeat gets what the peer gave to SendHeartbeat. The body belongs to the callee.
	Heartbeat(from engine.NodeID, incarnation uint64, body []byte)
	// Request is answered by calling req.Reply once, from any goroutine, now or later.
	Request(req Request)
	// Snapshot is called on a goroutine of its own and returns when the snapshot was taken or refused: see SnapshotReader.
	Snapshot(from engine.NodeID, incarnation uint64, header []byte, r *SnapshotReader)
	PeerConnected(node engine.NodeID, incarnation uint64, advertiseAddr string)
	PeerDisconnected(node engine.NodeID, incarnation uint64)
}
