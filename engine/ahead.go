package engine

// AheadParts returns what the engine points to and most events look at, for who asks the CPU for memory before the event comes, and the index of the
// last applied entry. It is for nothing else.
func (e *Engine) AheadParts() (lead *leadership, io *work, runs []TermRun, applied uint64) {
	return e.lead, e.io.work, e.log.runs, e.applied.Index
}

// AheadLists returns what these point to.
func (e *Engine) AheadLists() (followers []follower, bytes *uncommitted, queue []pendingIO, held []answer) {
	if l := e.lead; l != nil {
		followers, bytes = l.followers, l.bytes
	}
	return followers, bytes, e.io.pending(), e.io.held
}
