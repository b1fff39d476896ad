package engine

// AheadParts returns what the engine points to and most events look at, for who asks the CPU for memory before the event comes. It is for nothing else.
func (e *Engine) AheadParts() (*leadership, *work, []TermRun) {
	return e.lead, e.io.work, e.log.runs
}

// AheadLists returns what these point to.
func (e *Engine) AheadLists() (followers []follower, bytes *uncommitted, queue []pendingIO, held []answer) {
	if l := e.lead; l != nil {
		followers, bytes = l.followers, l.bytes
	}
	return followers, bytes, e.io.pending(), e.io.held
}
