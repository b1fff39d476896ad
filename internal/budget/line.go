package budget

// Line is one bound of the memory of a node, as docs/sizing.md lists them. Who has a bound tells it from the value that it goes by.
type Line struct {
	What    string
	Bytes   int64  // at most
	Per     string // what may take so much each; empty: all of the node together
	Count   int64  // how many of these there may be; 0: as many as the cluster has
	Setting string // that changes it; empty: none
	Then    string // what happens when it is reached
	Within  bool   // counted by another line, too
}
