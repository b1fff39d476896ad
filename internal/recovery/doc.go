// Package recovery is the last resort after a quorum is lost for good: it makes a cluster again of the nodes that survive, offline, on
// their data directories.
//
//	Inspect(dir) ─► Report ─┐
//	Inspect(dir) ─► Report ─┴► MakePlan(reports, lost) ─► Plan ─► Prepare(dir, plan), everywhere ─► Commit(dir, plan), everywhere
//
// # What it does
//
// A shard has lost its quorum if no survivor can be elected by the newest membership in its log. Of its replicas on survivors the one
// with the newest log (last term, then last index) goes on, and becomes the only voter: all entries that any survivor knows to be
// committed are in it. What is at its end and not known to be committed is kept, for it may have been acknowledged. The other survivors'
// replicas leave the shard, which the running cluster then sees to (rule Cluster5), and repair brings the replicas back. Shards that still
// have a quorum are not touched.
//
// Nothing is taken away from any disk. A log gets entries more: a membership of the one replica, in a term far above all that a survivor
// has seen, as if a leader of that term had committed it. So whatever stands in the log in front of it (a joint membership, a
// split, a step of a merge) takes effect by the ordinary code, which also raises ConfVersion and the Version; Inspect has that very
// code replay each log in memory to know what will come of it.
//
// # Why no lost node makes a second quorum
//
//   - Every survivor refuses the lost nodes at the handshake, for ever and from its start on (fact "lost"), and tells them that they are
//     removed, which they remember; the meta shard's records of them are set to removed.
//   - The one voter has entries of a term that no lost node can have, so it grants none of them a vote, and counts only its own.
//   - Ids that only lost nodes know are not given out again: the meta shard's allocators are raised.
//
// Lost nodes that can talk to each other and to no survivor are beyond all that: who names them as lost must see to it that they are.
//
// # Crashes
//
// Prepare writes the salvage file, then notes the recovery in the directory; a node does not start on such a directory. Commit
// adds all entries with one synced frame, then takes the note away. Both may be repeated, and a plan made anew after a crash covers
// what is left: a shard that was done has a quorum.
//
// It may import what cmd may.
package recovery
