package shard

import "github.com/kiloraft/kiloraft/internal/prefetch"

// The methods of this file ask the CPU for what applying a write will look at (see package prefetch). Each follows what the one before has asked
// for, so some time should lie between them. Nothing changes.

// AheadOverlay is the first.
func (m *Machine) AheadOverlay() {
	if m.live != nil {
		prefetch.Of(m.live)
	}
}

// AheadSlot is the second: entry is the payload of the one to be applied. It returns what AheadItem wants to know.
func (m *Machine) AheadSlot(entry []byte) (tag uint64) {
	if m.live == nil || len(entry) <= EntryHeaderBytes || CommandKind(entry[0]) != CommandWrite {
		return 0
	}
	key := putKey(entry[EntryHeaderBytes:])
	if key == nil {
		return 0
	}
	return m.live.AheadSlot(key)
}

// AheadItem is the third.
func (m *Machine) AheadItem(tag uint64) {
	if m.live != nil {
		m.live.AheadItem(tag)
	}
}
