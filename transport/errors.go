package transport

import (
	"errors"
	"fmt"
)

// Errors of calls and snapshots. All of them mean that this package gave up, not that the other side did nothing.
var (
	// ErrClosed: the transport or client connection was closed.
	ErrClosed = errors.New("transport closed")
	// ErrNotConnected: there is no session with that node, and nothing was sent.
	ErrNotConnected = errors.New("not connected")
	// ErrConnectionLost: the session ended before the answer came; the request may have been carried out.
	ErrConnectionLost = errors.New("connection lost before the answer")
	// ErrOverloaded: too many bytes are waiting to be sent; nothing was sent.
	ErrOverloaded = errors.New("too much is waiting to be sent")
	// ErrTooLarge: the message is over a limit; nothing was sent.
	ErrTooLarge = errors.New("message too large")
	// ErrDeadline: no answer by the deadline; the request may have been carried out.
	ErrDeadline = errors.New("no answer by the deadline")
	// ErrMalformed: the other side sent something that is not this protocol.
	ErrMalformed = errors.New("malformed frame")
	// ErrSnapshotAborted: the other side gave up a snapshot; the text says why.
	ErrSnapshotAborted = errors.New("snapshot aborted")

	errSilent     = errors.New("nothing received for too long")
	errSlow       = errors.New("a write took too long")
	errReplaced   = errors.New("replaced by another connection")
	errRemoved    = errors.New("peer removed")
	errGreedy     = errors.New("the clients hold too much, and this one most of it")
	errIdle       = errors.New("there are too many clients, and this one has been silent for longest")
	errNotReading = errors.New("the other side does not read its answers")
	errExpired    = errors.New("the client's credentials have expired")
	errHalfSent   = errors.New("a big frame does not arrive, and others wait to send theirs")
	errGone       = errors.New("the client has closed the connection")
)

// Reason tells why a connection was refused. It is on the wire: never renumber.
type Reason uint8

// The reasons.
const (
	ReasonOther Reason = 1
	// ReasonVersion: the ranges of protocol versions do not overlap.
	ReasonVersion Reason = 2
	// ReasonCluster: the other side is of another cluster.
	ReasonCluster Reason = 3
	// ReasonNoCluster: a peer called on a node that is in no cluster yet.
	ReasonNoCluster Reason = 4
	// ReasonNode: another node answers at this address, or a node dialled itself.
	ReasonNode Reason = 5
	// ReasonClone: the incarnation list lacks one that was accepted before: a copied or restored disk (rule Cluster9).
	ReasonClone Reason = 6
	// ReasonRemoved: the node was removed from the cluster.
	ReasonRemoved Reason = 7
	// ReasonAlive: an older incarnation of the same node is connected and alive (rule Cluster9); try again later.
	ReasonAlive Reason = 8
	// ReasonConnected: the session that exists stays (rule Cluster8).
	ReasonConnected Reason = 9
	// ReasonBusy: too many connections.
	ReasonBusy Reason = 10
	// ReasonMalformed: not a handshake of this protocol.
	ReasonMalformed Reason = 11
	// ReasonDenied: wrong credentials, or none where some are needed.
	ReasonDenied Reason = 12
	// ReasonUnsure: credentials cannot be checked now; try again, or another node.
	ReasonUnsure Reason = 13
)

var reasonNames = [...]string{"unknown", "refused", "no common protocol version", "another cluster", "not in a cluster yet", "another node",
	"copied or restored identity", "removed from the cluster", "an older incarnation is still alive", "already connected", "too many connections",
	"not this protocol", "access denied", "credentials cannot be checked now"}

// String says it in words.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return reasonNames[0]
}

// Refused is the error of a handshake that was refused, by this side or by the other.
type Refused struct {
	Reason Reason
	Text   string
	// Remote tells that the other side refused.
	Remote bool
}

// Error implements error.
func (e *Refused) Error() string {
	by := "refused"
	if e.Remote {
		by = "refused by the other side"
	}
	if e.Text == "" {
		return fmt.Sprintf("%s: %s", by, e.Reason)
	}
	return fmt.Sprintf("%s: %s: %s", by, e.Reason, e.Text)
}

func refuse(r Reason, format string, args ...any) *Refused {
	return &Refused{Reason: r, Text: fmt.Sprintf(format, args...)}
}

// StatusError is the error of a call that was answered with a status other than StatusOK.
type StatusError struct {
	Status uint16
	Body   []byte // belongs to the caller
}

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("answered with status %d", e.Status) }

// Statuses that this package itself answers with; handlers use others.
const (
	StatusOK uint16 = 0
	// StatusExpired: the handler did not answer by the deadline.
	StatusExpired uint16 = 65535
	// StatusTooLarge: the answer is over the limit of a frame.
	StatusTooLarge uint16 = 65534
	// StatusBusy: there was an answer, but too many bytes of answers are waiting to be sent to the same peer. A read may be asked again after a pause.
	StatusBusy uint16 = 65533
)
