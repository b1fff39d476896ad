package transport

import "github.com/kiloraft/kiloraft/internal/budget"

// clientBytes is about what a client's connection takes that does nothing: two buffers of 16 and 4 KiB to read by, and the stacks of eight goroutines.
const clientBytes = 20<<10 + 8*8<<10

// Budgets are the bounds of the memory that clients and peers take.
func (l Limits) Budgets() []budget.Line {
	l.defaults()
	n := func(i int) int64 { return int64(i) }
	return []budget.Line{
		{What: "native clients: frames being read, requests in flight, answers not taken", Bytes: 2 * n(l.ClientsBytesMax),
			Then: "from half of it on a connection of the host that holds most is closed; at it, whoever adds"},
		{What: "native clients: big answers in the making and not taken, by what is expected", Bytes: n(l.BigBytesMax), Then: "hosts wait in turn; who takes nothing for 2 s is cut off", Within: true},
		{What: "native clients: frames of over 2 MiB being read", Bytes: n(l.BigFramesMax), Then: "hosts wait in turn; who pauses for 2 s, or takes 30 s, is cut off", Within: true},
		{What: "native clients: answers of a connection", Bytes: n(l.AnswerBytesMax), Per: "connection", Count: n(l.ClientsMax), Then: "the connection is closed", Within: true},
		{What: "native clients: of that, what was received and waits to be read (yamux)", Bytes: n(l.ClientWindow), Per: "connection", Count: n(l.ClientsMax), Then: "the client sends no more", Within: true},
		{What: "native clients: buffers and stacks", Bytes: clientBytes, Per: "connection", Count: n(l.ClientsMax), Then: "the longest silent connection is closed, or the new one refused"},
		{What: "raft messages to a peer, half of it for large ones", Bytes: 2 * n(l.OutboxBytesMax), Per: "peer", Then: "they are dropped, and repeated"},
		{What: "requests to a peer, half of it for large ones", Bytes: 2 * n(l.RequestBytesMax), Per: "peer", Then: "overloaded"},
		{What: "heartbeats to a peer", Bytes: n(l.HeartbeatBytesMax), Per: "peer", Then: "they are dropped"},
		{What: "requests of a peer in flight", Bytes: n(l.InFlightBytesMax), Per: "peer", Then: "nothing more is read"},
		{What: "answers to a peer", Bytes: n(l.AnswerBytesMax), Per: "peer", Then: "from half of it on big ones are refused as busy"},
		{What: "what was received of a peer and waits to be read, four streams", Bytes: 4 * n(l.PeerWindow), Per: "peer", Then: "the peer sends no more"},
	}
}
