// Package budget bounds what the connections of one front door hold together, so that no number of clients, slow, greedy or broken, takes
// the memory of the node or the turns of its lanes from the others.
//
// Connections have owners: the host that they come from. Nobody gets more by opening more of them.
//
// A Budget counts bytes that are held: requests being read and served, answers not taken. Over its bound the largest connection of the owner
// who holds most is closed. What is left of a closed one is counted until it is given back, up to twice the bound; over that whoever adds is closed.
//
// Credits are a semaphore in bytes, for work in progress that is known to be big: who wants some waits, and owners have
// their turns one after the other.
//
// All methods may be called from any goroutine. The package imports the standard library alone.
package budget
