package engine

// handleCheckpointed lets go of what is durable without the log (rule Engine7). A leader keeps what a live follower or a snapshot on its
// way still needs, unless the log has outgrown its bound.
func (e *Engine) handleCheckpointed(m *Checkpointed) {
	checkpoint := min(m.LogID.Index, e.applied.Index)
	to := checkpoint
	if e.lead != nil {
		for i := range e.lead.followers {
			if f := &e.lead.followers[i]; e.stillFollows(f) {
				to = min(to, f.needs()-1)
			}
		}
	}
	if m.PurgeBelow > 0 {
		to = max(to, min(checkpoint, m.PurgeBelow-1))
	}
	if to <= e.log.purged.Index {
		return
	}
	id := e.log.id(to)
	e.log.purge(id)
	e.emit(PurgeLog).LogID = id
}

// needs tells the first entry that f may still have to be sent.
func (f *follower) needs() uint64 {
	if f.state == ProgressSnapshot {
		return f.snapIndex + 1
	}
	return f.match + 1
}

// stillFollows tells whether the follower is alive: by its node's link if that is known, else by its answers.
func (e *Engine) stillFollows(f *follower) bool {
	if e.cfg.Links != nil {
		if k, ok := e.cfg.Links.Nodes[f.peer.Node]; ok {
			return k.Up
		}
	}
	return f.asleep || f.activeAt+2*Instant(e.cfg.ElectionTimeoutMin) > e.now
}
