package shard

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// CommandKind is the first byte of an entry's payload: what the state machine is to do. Stored in the raft log: never renumber.
type CommandKind uint8

// The commands. From CommandSplit on they stand in barrier entries, one each. A replica that meets one that it does not
// know stops (ErrUnknownCommand), and a cluster version keeps it from being proposed before all nodes know it (rule Cluster8).
const (
	CommandWrite CommandKind = 1 // a stamp and a Write
	CommandTime  CommandKind = 2 // a stamp alone (rule State8)

	CommandSplit        CommandKind = 16 // a stamp and a Split
	CommandPrepareMerge CommandKind = 17 // a stamp and a MergeStep, as all below
	CommandFreeze       CommandKind = 18
	CommandUnfreeze     CommandKind = 19
	CommandMerge        CommandKind = 20
	CommandAbortMerge   CommandKind = 21
	CommandEndMerge     CommandKind = 22
)

// EntryHeaderBytes is how much an entry's payload is longer than the body it carries: the kind, and the stamp.
const EntryHeaderBytes = 9

// ErrUnknownCommand: an entry cannot be understood by this version. The replica must stop where it is.
var ErrUnknownCommand = errors.New("entry of an unknown kind")

// AppendWriteEntry appends the payload of a write: the kind, the leader's stamp (unix ms) and the encoded Write, unchanged.
func AppendWriteEntry(b []byte, stampMs int64, write []byte) []byte {
	return append(appendEntryHeader(b, CommandWrite, stampMs), write...)
}

// AppendTimeEntry appends the payload of a time entry (rule State8).
func AppendTimeEntry(b []byte, stampMs int64) []byte {
	return appendEntryHeader(b, CommandTime, stampMs)
}

func appendEntryHeader(b []byte, kind CommandKind, stampMs int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, byte(kind)), uint64(stampMs))
}

// SplitEntry cuts a payload into kind, stamp and body, which aliases it.
func SplitEntry(payload []byte) (kind CommandKind, stampMs int64, body []byte, err error) {
	if len(payload) == 0 {
		return 0, 0, nil, fmt.Errorf("%w: empty payload", ErrUnknownCommand)
	}
	kind = CommandKind(payload[0])
	if kind != CommandWrite && kind != CommandTime && (kind < CommandSplit || kind > CommandEndMerge) {
		return kind, 0, nil, fmt.Errorf("%w: command %d: this binary is too old for the cluster, or the log is damaged", ErrUnknownCommand, kind)
	}
	if len(payload) < EntryHeaderBytes {
		return kind, 0, nil, fmt.Errorf("%w: command %d of %d bytes", ErrUnknownCommand, kind, len(payload))
	}
	return kind, int64(binary.BigEndian.Uint64(payload[1:])), payload[EntryHeaderBytes:], nil
}
