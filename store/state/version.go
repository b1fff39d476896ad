//go:build !kiloraft_next

package state

// formatMin and formatVersion are the formats of the file that are read. A file of an older one becomes one of formatVersion when it is opened for
// writing; one of a newer is refused.
const (
	formatMin     = 1
	formatVersion = 1
)
