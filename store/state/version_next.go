//go:build kiloraft_next

package state

// The formats of the next release, for the tests of rolling upgrades: see internal/e2e.TestUpgrade.
const (
	formatMin     = 1
	formatVersion = 2
)
