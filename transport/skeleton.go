package transport

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

var errNotImplemented = errors.New("not implemented")

type Transport struct{}

func New(cfg Config, h Handler) (*Transport, error)            { return nil, errNotImplemented }
func (t *Transport) Join(cluster ID, node engine.NodeID) error { return errNotImplemented }
func (t *Transport) Serve(l net.Listener) error                { return errNotImplemented }
func (t *Transport) SetPeer(node engine.NodeID, addr string)   {}
func (t *Transport) RemovePeer(node engine.NodeID)             {}
func (t *Transport) Close() error                              { return errNotImplemented }

// SendRaft queues concatenated wire messages (copied); false: not connected or over the outbox's bound.
func (t *Transport) SendRaft(node engine.NodeID, lane int, msgs []byte) bool { return false }
func (t *Transport) SendHeartbeat(node engine.NodeID, body []byte) bool      { return false }

// Disconnect closes the session with this incarnation, e.g. because a frame's messages were malformed.
func (t *Transport) Disconnect(node engine.NodeID, incarnation uint64, reason error) {}
func (t *Transport) Call(ctx context.Context, node engine.NodeID, method uint16, body []byte) ([]byte, error) {
	return nil, errNotImplemented
}

// Go calls done exactly once, maybe before it returns.
func (t *Transport) Go(node engine.NodeID, method uint16, deadline time.Time, flags uint8, body []byte, done func([]byte, error)) {
}
func (t *Transport) OpenSnapshot(ctx context.Context, node engine.NodeID, header []byte) (*SnapshotWriter, error) {
	return nil, errNotImplemented
}

// Request is a request being served. It is a value; Reply may be called once, from any goroutine.
type Request struct {
	Method   uint16
	Flags    uint8 // FlagForwarded
	Deadline time.Time
	Body     []byte
}

// FlagForwarded marks a request that must not be forwarded again (rule Cluster3).
const FlagForwarded uint8 = 1

// From tells who asks.
func (r *Request) From() Caller                     { return Caller{} }
func (r *Request) Reply(status uint16, body []byte) {}
func (r *Request) Forwarded() bool                  { return r.Flags&FlagForwarded != 0 }

// Caller names the other side of a connection.
type Caller struct {
	Client      bool
	Node        engine.NodeID // zero for clients
	Incarnation uint64
	Addr        net.Addr
}

type SnapshotWriter struct{}

func (w *SnapshotWriter) Write(ctx context.Context, chunk []byte) error { return errNotImplemented }
func (w *SnapshotWriter) Finish(ctx context.Context) error              { return errNotImplemented }
func (w *SnapshotWriter) Abort(reason string)                           {}

type SnapshotReader struct{}

// Next returns the next chunk, valid until the next call, which acknowledges it; io.EOF at the end.
func (r *SnapshotReader) Next(ctx context.Context) ([]byte, error) { return nil, errNotImplemented }

// Finish tells the sender how it ended: nil, or why not.
func (r *SnapshotReader) Finish(err error) error { return errNotImplemented }

// ClientConfig is for DialClient.
type ClientConfig = Config

type ClientConn struct{}

func DialClient(ctx context.Context, addr string, cfg ClientConfig) (*ClientConn, error) {
	return nil, errNotImplemented
}
func (c *ClientConn) Call(ctx context.Context, method uint16, body []byte) ([]byte, error) {
	return nil, errNotImplemented
}
func (c *ClientConn) Go(method uint16, deadline time.Time, flags uint8, body []byte, done func([]byte, error)) {
}
func (c *ClientConn) Peer() PeerInfo        { return PeerInfo{} }
func (c *ClientConn) Done() <-chan struct{} { return nil }
func (c *ClientConn) Close() error          { return nil }
