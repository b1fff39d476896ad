// Package wire is the format of the messages that replicas send to each other: every message of package engine, as
// MessagePack in array form.
//
// One message is a bin that holds an array:
//
//	bin [ kind, shard, from replica, to replica, fields … ]
//
// and a raft frame is a concatenation of such bins. The bin lets a reader skip a message whose shard is another lane's
// business after reading five integers. The node ids of sender and receiver are not in the message: they are those of the
// session that carries it (rule Engine5 compares both). Receivers ignore fields that a newer version has added at the end of
// an array, and unknown bits of flags; they refuse a message with fewer fields. The fields are listed in docs/wire.md.
//
// Encoding appends to a buffer of the caller and allocates nothing else; the body of an entry run is copied exactly once.
// Decoding fills structs of the caller and reuses their slices; bodies alias the frame. Every length is checked against the
// bytes that are left, so that no message can panic, or make its reader allocate more than a small multiple of its size.
//
// The bodies of entry runs are opaque here, except that an entry takes at least two bytes.
//
// It imports engine and internal/mp.
package wire
