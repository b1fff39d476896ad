//go:build kiloraft_next

package transport

// The versions of the next release, for the tests of rolling upgrades: see internal/e2e.TestUpgrade.
const (
	ProtocolMin = 1
	ProtocolMax = 2
)
