//go:build !kiloraft_next

package transport

// ProtocolMin and ProtocolMax are the versions of the protocol that this package speaks; a session uses the highest that both sides do. A
// version is dropped only when no release that speaks nothing newer may be upgraded from any more.
const (
	ProtocolMin = 1
	ProtocolMax = 1
)
