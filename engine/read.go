package engine

// reads are the tokens of reads on their way:
//
//	waiting ──broadcast──► round ──quorum answered──► confirmed ──readable──► ReadReady
//
// A token stands for itself and all smaller ones, so three numbers hold any number of reads.
type reads struct {
	waiting   uint64 // they came after the round in flight was sent, and need another
	round     uint64 // these wait for the heartbeat round number
	number    uint64
	confirmed uint64 // these wait for what is committed and must be applied first
	last      uint64 // the greatest ever accepted
}

// readable tells whether the applied state may be read by a leader at all: not before its own blank entry is applied, and
// not while an entry that moves ownership, or a membership, is committed and not applied (rule Engine4).
func (e *Engine) readable() bool {
	if e.applied.Index < e.lead.blank {
		return false
	}
	for _, b := range e.io.barriers {
		if b > e.applied.Index && b <= e.committed.Index {
			return false
		}
	}
	return true
}

func (e *Engine) handleReadIndex(m *ReadIndex) {
	if e.lead == nil {
		e.refuse(m.Token, ReasonNotLeader)
		e.provoke()
		return
	}
	r := &e.lead.reads
	r.last = max(r.last, m.Token)
	if e.now < e.leaseUntil() || e.memb.Membership.onlyVoter(e.self) {
		// The earlier ones are confirmed by the same fact.
		*r = reads{confirmed: m.Token, last: r.last}
		return
	}
	e.wake()
	e.lead.busyAt = e.now
	r.waiting = m.Token
	if r.round == 0 {
		e.startRound()
	}
}

// startRound sends one heartbeat for all reads that wait (rule: one quorum round for all, no read joins a round already sent).
func (e *Engine) startRound() {
	r := &e.lead.reads
	e.broadcast()
	r.round, r.number, r.waiting = r.waiting, e.lead.round, 0
}

func (e *Engine) advanceReads() {
	r := &e.lead.reads
	if r.round != 0 && e.roundAnswered(r.number) {
		r.confirmed, r.round = r.round, 0
		if r.waiting != 0 {
			e.startRound()
		}
	}
	if r.confirmed != 0 && e.readable() {
		e.emit(ReadReady).Token = r.confirmed
		r.confirmed = 0
	}
}

func (e *Engine) roundAnswered(number uint64) bool {
	return hasQuorum(e.memb.Membership, func(p Peer) bool {
		f := e.lead.find(p)
		return p == e.self || f != nil && f.round >= number
	})
}
