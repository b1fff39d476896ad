package engine

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Each trap cost somebody data, or a night (STYLE.md, FAULTS.md section 2).

// play runs the lines of a script and returns what the last one caused.
func play(t *testing.T, s *script, lines ...string) []string {
	t.Helper()
	var out []string
	for _, l := range lines {
		var err error
		if out, err = s.step(l); err != nil {
			t.Fatal(l, err)
		}
	}
	return out
}

func causes(out []string, what string) bool {
	return slices.ContainsFunc(out, func(o string) bool { return strings.HasPrefix(o, what) })
}

func want(t *testing.T, out []string, what string) {
	t.Helper()
	if !causes(out, what) {
		t.Errorf("want %q, got %q", what, out)
	}
}

func wantNot(t *testing.T, out []string, what string) {
	t.Helper()
	if causes(out, what) {
		t.Errorf("do not want %q, got %q", what, out)
	}
}

const follower3 = "new self=2 voters=1,2,3 applied=1.1 purged=1.1 "

func TestTrapCompletionOfOverwrittenAppend(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1! runs=1.2-4", "tick at=10", "append-request from=1 vote=3:1! prev=1.4 runs=3.5-8 seq=1")
	late := s.flushes()[0]
	play(t, s, "append-request from=3 vote=4:3! prev=1.4 runs=4.5-8 commit=4.8 seq=1")
	out := s.feed(&Flushed{IO: late})
	wantNot(t, out, "Respond")
	wantNot(t, out, "Apply 2..8")
	if got := s.e.Status().Flushed.Index; got != 4 {
		t.Errorf("flushed %d: an index alone completed what another leader overwrote", got)
	}
	if out := s.feed(&Flushed{IO: late}); len(out) != 0 {
		t.Errorf("a late completion caused %q", out)
	}
	want(t, play(t, s, "flush"), "Respond to=n3 append{ok=true match=4.8")
}

func TestTrapCursorsNeverGoBack(t *testing.T) {
	s := &script{}
	play(t, s, follower3, "tick at=10", "append-request from=1 vote=3:1! prev=1.1 runs=3.2-4 seq=1", "append-request from=1 vote=3:1! prev=3.4 runs=3.5-6 seq=2")
	io := s.e.io.pending()
	first, last := io[1].io, io[2].io
	s.feed(&Flushed{IO: last})
	s.feed(&Flushed{IO: first})
	s.feed(&Flushed{IO: IOID{Vote{9, peer(3), true}, LogID{9, 99}}})
	if st := s.e.Status(); st.Flushed != (LogID{3, 6}) {
		t.Error(st.Flushed)
	}
}

func TestTrapRepeatedAppendWaitsForTheEarlierWrite(t *testing.T) {
	s := &script{}
	play(t, s, follower3, "tick at=10", "append-request from=1 vote=3:1! prev=1.1 runs=3.2-4 seq=1")
	out := play(t, s, "append-request from=3 vote=4:3! prev=1.1 runs=3.2-4 seq=1")
	wantNot(t, out, "AppendInputEntries")
	wantNot(t, out, "Respond")
	wantNot(t, play(t, s, "flush n=2"), "Respond")
	want(t, play(t, s, "flush"), "Respond to=n3 append{ok=true match=3.4")
}

func TestTrapTruncatesFromTheFirstDifferenceOnly(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1! runs=1.2-4,2.5-9", "tick at=10")
	out := play(t, s, "append-request from=1 vote=3:1! prev=1.2 runs=1.3-4,2.5-6 seq=1")
	wantNot(t, out, "TruncateLog")
	if s.e.Status().Last.Index != 9 {
		t.Error("a shorter append truncated")
	}
	want(t, play(t, s, "append-request from=1 vote=3:1! prev=1.2 runs=1.3-4,2.5-6,3.7-7 seq=2"), "TruncateLog 7")
}

func TestTrapRejectedVoteAdoptsTheUncommittedForm(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1", "tick at=10", "tick at=2000", "vote-response from=2 pre granted request=1:1 vote=0:0", "flush")
	want(t, play(t, s, "vote-response from=2 request=1:1 vote=7:3!"), "SaveVote vote=7:3 ")
	if v := s.e.Status().Vote; v.Committed {
		t.Error(v)
	}
}

func TestTrapHigherVoteInPreVoteRejectionIsAdopted(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1", "tick at=10", "tick at=2000")
	want(t, play(t, s, "vote-response from=2 pre request=1:1 vote=7:3"), "SaveVote vote=7:3 ")
	want(t, play(t, s, "tick at=5000"), "SendPreVote vote=8:1")
}

func TestTrapQuorumIsSortedAfresh(t *testing.T) {
	// Values that change in place, also downwards, as when a membership changes (openraft #1802).
	m := &Membership{Voters: [][]Peer{{peer(1), peer(2), peer(3), peer(4), peer(5)}}}
	values := map[Peer]uint64{peer(1): 9, peer(2): 8, peer(3): 7, peer(4): 6, peer(5): 5}
	value := func(p Peer) uint64 { return values[p] }
	if got := quorumValue(m, value); got != 7 {
		t.Error(got)
	}
	values[peer(1)], values[peer(5)] = 1, 8
	if got := quorumValue(m, value); got != 7 {
		t.Error(got)
	}
	values[peer(3)] = 2
	if got := quorumValue(m, value); got != 6 {
		t.Error(got)
	}
}

func TestTrapMembershipCoveredBySnapshot(t *testing.T) {
	s := &script{}
	play(t, s, follower3, "tick at=10", "append-request from=1 vote=3:1! prev=1.1 runs=3.2-4 membat=3.4 voters=1,2 seq=1", "flush",
		"snapshot token=1 from=1 vote=3:1! stream=2 last=3.9 membat=3.8 voters=1,2,5", "installed token=1 last=3.9 membat=3.8 voters=1,2,5")
	if got := memb(s.e.memb.Membership); got != "1,2,5+" {
		t.Error(got)
	}
	if s.e.prev != nil {
		t.Error("a membership before the snapshot survived it")
	}
}

func TestTrapTruncatedMembershipReverts(t *testing.T) {
	s := &script{}
	play(t, s, follower3, "tick at=10", "append-request from=1 vote=3:1! prev=1.1 runs=3.2-4 membat=3.4 voters=1,3 seq=1")
	if got := memb(s.e.memb.Membership); got != "1,3+" {
		t.Error(got)
	}
	play(t, s, "append-request from=3 vote=4:3! prev=3.3 runs=4.4-4 seq=1")
	if got := memb(s.e.memb.Membership); got != "1,2,3+" {
		t.Error(got)
	}
	if s.e.Status().Role != RoleFollower {
		t.Error("it is a voter again")
	}
}

func TestTrapApplySkipsForwardPastASnapshot(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"runs=1.2-4 vote=3:1!", "tick at=10")
	want(t, play(t, s, "append-request from=1 vote=3:1! prev=1.4 commit=1.4 seq=1"), "Apply 2..4")
	play(t, s, "snapshot token=1 from=1 vote=3:1! stream=2 last=3.9 membat=1.1 voters=1,2,3", "installed token=1 last=3.9 membat=1.1 voters=1,2,3", "flush")
	if out := play(t, s, "applied id=1.4"); len(out) != 0 {
		t.Errorf("the overtaken apply caused %q", out)
	}
	out := play(t, s, "append-request from=1 vote=3:1! prev=3.9 runs=3.10-11 commit=3.11 seq=2", "flush")
	want(t, out, "Apply 10..11")
}

func TestTrapLeaderWithoutQuorumStopsRefreshing(t *testing.T) {
	s := &script{}
	lead(t, s)
	want(t, play(t, s, "tick at=11500"), "BroadcastHeartbeat")
	out := play(t, s, "tick at=12100")
	want(t, out, "FailPendingReads")
	want(t, out, "SendHeartbeat to=n2")
	wantNot(t, out, "BroadcastHeartbeat")
	if s.e.IsLeader() || s.e.LeaseValid(12100) {
		t.Error("still in office")
	}
}

func TestTrapLeaseCountsFromSendingStrictly(t *testing.T) {
	s := &script{}
	lead(t, s)
	// Sent at 11003, promise 1000, drift 50; received much later.
	play(t, s, "heartbeat-response at=11900 from=2 vote=1:1! sent=11003 promise=1000")
	if !s.e.LeaseValid(11952) || s.e.LeaseValid(11953) {
		t.Error(s.e.Status().LeaseUntil)
	}
}

func TestTrapLosingOfficeFailsReadsFirst(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "read at=12000 token=5", "write token=6")
	out := play(t, s, "append-response from=2 vote=8:2 stream=1 seq=2")
	if len(out) == 0 || out[0] != "FailPendingReads token=5" {
		t.Errorf("%q", out)
	}
}

func TestTrapHeldAnswersDieWithTheVote(t *testing.T) {
	s := &script{}
	play(t, s, follower3, "tick at=10", "vote-request from=3 vote=2:3 last=1.1")
	play(t, s, "append-request from=1 vote=3:1! prev=1.1 runs=3.2-2 seq=1")
	out := play(t, s, "flush")
	wantNot(t, out, "Respond to=n3 vote{pre=false granted=true")
	want(t, out, "Respond to=n1 append{ok=true")
}

func TestTrapWaitingSnapshotDoesNotHoldBackVotesAndAppends(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1!", "tick at=10", "snapshot token=1 from=1 vote=3:1! stream=2 last=3.9 membat=1.1 voters=1,2,3")
	out := play(t, s, "append-request from=1 vote=3:1! prev=1.1 runs=3.2-4 seq=1", "flush")
	want(t, out, "Respond to=n1 append{ok=true match=3.4")
	out = play(t, s, "vote-request at=3000 from=3 vote=4:3 last=3.9", "flush")
	want(t, out, "Respond to=n3 vote{pre=false granted=true")
}

// A vote that was given for an earlier candidacy comes late: who gave it may have voted for another since.
func TestTrapLateVoteDoesNotCount(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1", "tick at=10", "tick at=2000", "vote-response from=2 pre granted request=1:1 vote=0:0", "flush")
	play(t, s, "tick at=6000", "vote-response from=3 pre granted request=2:1 vote=1:1", "flush")
	play(t, s, "vote-response from=2 granted request=1:1 vote=1:1", "flush")
	if st := s.e.Status(); st.Role != RoleCandidate || st.Vote != (Vote{Term: 2, Peer: Peer{1, 11}}) {
		t.Errorf("after a vote for term 1: %+v", st)
	}
	play(t, s, "vote-response from=2 granted request=2:1 vote=2:1", "flush")
	if st := s.e.Status(); st.Role != RoleLeader {
		t.Errorf("after a vote for term 2: %+v", st)
	}
}

// An answer to an append of an earlier term of office comes late: what it holds there may have been cut since, and another entry is at its index.
func TestTrapLateAnswerOfAnEarlierTermDoesNotCount(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1 runs=2.2-4 vote=2:1!", "tick at=10", "vote-response from=2 pre granted request=3:1 vote=2:1", "flush",
		"vote-response from=2 granted request=3:1 vote=3:1", "flush")
	wantNot(t, play(t, s, "append-response from=2 vote=2:1! stream=1 seq=1 ok match=2.5"), "SaveCommitted")
	wantNot(t, play(t, s, "append-response from=2 vote=3:1! stream=1 seq=1 ok match=2.4"), "SaveCommitted")
	want(t, play(t, s, "append-response from=2 vote=3:1! stream=1 seq=2 ok match=3.5"), "SaveCommitted id=3.5")
}

// A resignation of an earlier term comes late: it says nothing of the leader that there is now, whose promise stays (FAULTS N4).
func TestTrapLateResignationEndsNoPromise(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1!", "tick at=10", "append-request at=2000 from=3 vote=4:3! prev=1.1 runs=4.2-2 seq=1 sent=2000", "flush")
	if !s.e.bound() {
		t.Fatal("no promise was given")
	}
	for _, late := range []string{"from=1 vote=3:1!", "from=3 vote=3:3!", "from=1 vote=4:3!"} {
		if out := play(t, s, "heartbeat sent=1900 resigned "+late); len(out) != 0 || !s.e.bound() || s.e.Leader() != peer(3) {
			t.Errorf("%s: bound %v, leader %v, %q", late, s.e.bound(), s.e.Leader(), out)
		}
	}
	if play(t, s, "heartbeat from=3 vote=4:3! sent=2100 resigned"); s.e.bound() {
		t.Error("the promise outlives the office")
	}
}

// A pre-vote that was given for an earlier term comes late: much may have happened since (FAULTS N4).
func TestTrapLatePreVoteDoesNotCount(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1", "tick at=10", "tick at=2000", "vote-response from=2 pre request=1:1 vote=7:3", "flush", "tick at=6000")
	if s.e.role != RolePreCandidate || s.e.vote.Term != 7 {
		t.Fatalf("role %v, vote %v", s.e.role, s.e.vote)
	}
	if out := play(t, s, "vote-response from=3 pre granted request=1:1 vote=0:0"); len(out) != 0 {
		t.Errorf("a pre-vote for term 1 caused %q", out)
	}
	want(t, play(t, s, "vote-response from=3 pre granted request=8:1 vote=7:3"), "SaveVote vote=8:1")
}

// An append from before a snapshot comes late: it takes nothing back, and its answer says what is held (FAULTS N4, RedisLabs/raft #49).
func TestTrapAppendFromBeforeTheSnapshot(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1!", "tick at=10", "snapshot token=1 from=1 vote=3:1! stream=2 last=3.9 membat=1.1 voters=1,2,3",
		"installed token=1 last=3.9 membat=1.1 voters=1,2,3", "flush", "append-request from=1 vote=3:1! prev=3.9 runs=3.10-11 commit=3.11 seq=2", "flush")
	for _, late := range []string{"prev=0.0 runs=1.1-1,3.2-4", "prev=1.1 runs=3.2-4", "prev=3.8 runs=3.9-10", "prev=1.1"} {
		out := play(t, s, "append-request from=1 vote=3:1! seq=1 "+late)
		wantNot(t, out, "TruncateLog")
		wantNot(t, out, "AppendInputEntries")
		want(t, out, "Respond to=n1 append{ok=true match=3.")
		if last := s.e.log.last(); last != (LogID{3, 11}) {
			t.Errorf("%s: the log ends at %v", late, last)
		}
	}
}

// Who cannot reach a quorum gives others a time-out's start, for it is the one that is cut off (FAULTS N5).
func TestTrapWhoResignsLetsOthersGoFirst(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "tick at=11500", "tick at=12100")
	if wait := s.e.Deadline() - s.now; s.e.IsLeader() || wait < 2*Instant(s.e.cfg.ElectionTimeoutMin) {
		t.Errorf("it leads: %v, and campaigns after %d", s.e.IsLeader(), wait)
	}
}

// A follower that was started again holds what the leader knows, and does not know that it is the leader's log: it says so, and is asked again, or it would apply
// nothing until the next write (FAULTS N6).
func TestTrapFollowerBehindIsAskedAgain(t *testing.T) {
	s := &script{}
	lead(t, s)
	f := s.e.lead.find(peer(2))
	if f.state != ProgressPipeline || f.inflight() != 0 {
		t.Fatalf("%+v", f)
	}
	want(t, play(t, s, "heartbeat-response at=11200 from=2 vote=1:1! round=1 sent=11150 behind last=1.2 promise=1000"), "Replicate to=n2")
}

func TestTrapVoteIsDurableBeforeAnswer(t *testing.T) {
	s := &script{}
	play(t, s, follower3, "tick at=10")
	out := play(t, s, "vote-request from=3 vote=2:3 last=1.1")
	want(t, out, "SaveVote vote=2:3")
	wantNot(t, out, "Respond")
	want(t, play(t, s, "flush"), "Respond to=n3 vote{pre=false granted=true")
	// Once in a term; the same candidate may ask again.
	want(t, play(t, s, "vote-request from=1 vote=2:1 last=1.1"), "Respond to=n1 vote{pre=false granted=false")
	want(t, play(t, s, "vote-request from=3 vote=2:3 last=1.1"), "Respond to=n3 vote{pre=false granted=true")
	want(t, play(t, s, "vote-request from=1 vote=1:1 last=1.1"), "Respond to=n1 vote{pre=false granted=false")
}

func TestTrapStaleLogGetsNoVoteButMovesTheTerm(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"runs=1.2-4,2.5-5", "tick at=10")
	out := play(t, s, "vote-request from=3 vote=7:3 last=1.9")
	want(t, out, "SaveVote vote=7:0")
	want(t, out, "Respond to=n3 vote{pre=false granted=false")
	out = play(t, s, "vote-request from=1 vote=7:1 last=2.5", "flush")
	want(t, out, "Respond to=n1 vote{pre=false granted=true")
}

func TestTrapLeaderCountsItselfOnlyWhenDurable(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1 applied=1.1 purged=1.1", "tick at=10", "flush")
	play(t, s, "flush", "applied id=1.2")
	wantNot(t, play(t, s, "write token=1"), "Apply")
	want(t, play(t, s, "flush"), "Apply 3..3")
}

func TestTrapEarlierTermsAreNotCommittedByCounting(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1 runs=2.2-4 vote=2:1!", "tick at=10", "vote-response from=2 pre granted request=3:1 vote=2:1", "flush",
		"vote-response from=2 granted request=3:1 vote=3:1", "flush")
	// Raft figure 8: entry 2.4 is on a quorum, and that alone commits nothing.
	wantNot(t, play(t, s, "append-response from=2 vote=3:1! stream=1 seq=1 ok match=2.4"), "SaveCommitted")
	want(t, play(t, s, "append-response from=2 vote=3:1! stream=1 seq=2 ok match=3.5"), "SaveCommitted id=3.5")
}

func TestTrapStaleStreamsMoveNothing(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "write token=1")
	wantNot(t, play(t, s, "append-response from=2 vote=1:1! stream=9 seq=2 ok match=1.3", "flush"), "Apply")
	wantNot(t, play(t, s, "append-response from=2 vote=1:1! stream=1 seq=9 ok match=1.3"), "Apply")
	wantNot(t, play(t, s, "append-response from=2 vote=1:1! stream=1 seq=2 ok match=1.9"), "Apply")
	wantNot(t, play(t, s, "append-response from=9 vote=1:1! stream=1 seq=2 ok match=1.3"), "Apply")
	want(t, play(t, s, "append-response from=2 vote=1:1! stream=1 seq=2 ok match=1.3"), "Apply 3..3")
	if s.e.StreamLive(peer(2), 9) || !s.e.StreamLive(peer(2), 1) {
		t.Error("StreamLive")
	}
}

// An answer that comes again after a later one does not make the messages between them unanswered again: they would fill the window for good.
func TestTrapOldAnswerFillsNoWindow(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "write token=1", "write token=2")
	f := s.e.lead.find(peer(2))
	seq := f.seq
	last := fmt.Sprintf("append-response from=2 vote=1:1! stream=%d seq=%d ok match=1.4", f.stream, seq)
	first := fmt.Sprintf("append-response from=2 vote=1:1! stream=%d seq=1 ok match=1.2", f.stream)
	if seq < 2 {
		t.Fatalf("%d messages", seq)
	}
	play(t, s, last)
	if f.inflight() != 0 {
		t.Fatalf("%d messages under way", f.inflight())
	}
	if play(t, s, first); f.inflight() != 0 {
		t.Errorf("%d messages under way after an old answer", f.inflight())
	}
}

// A message whose successor was dropped takes longer than that takes to be told: its answer still counts, or it would be sent for ever.
func TestTrapAnswerToEarlierStreamCounts(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "write token=1", "flush", "write token=2", "replicate-failed to=2 stream=1")
	want(t, play(t, s, "append-response from=2 vote=1:1! stream=1 seq=2 ok match=1.3"), "Apply 3..3")
	// A refusal and an end that is not in the log tell nothing.
	wantNot(t, play(t, s, "append-response from=2 vote=1:1! stream=1 seq=3 hint=1.1"), "Replicate")
	wantNot(t, play(t, s, "flush", "append-response from=2 vote=1:1! stream=1 seq=3 ok match=1.9"), "Apply")
	for _, p := range s.e.Progress(nil) {
		if p.Peer == peer(2) && (p.Match.Index != 3 || p.Next != 4 || p.State != ProgressProbe) {
			t.Errorf("%+v", p)
		}
	}
}

func TestTrapBarrierHoldsReads(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "write token=1 barrier", "flush")
	if !s.e.LeaseValid(s.now) {
		t.Error("not committed yet: reads go on")
	}
	play(t, s, "append-response from=2 vote=1:1! stream=1 seq=2 sent=11006 ok match=1.3 promise=1000")
	if s.e.LeaseValid(s.now) {
		t.Error("a barrier is committed and not applied")
	}
	wantNot(t, play(t, s, "read token=2"), "ReadReady")
	want(t, play(t, s, "applied id=1.3"), "ReadReady token=2")
}

func TestTrapVoidOfferToSleepExtendsNoLease(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "link node=2 up inc=1 granted=99999 ge=1", "link node=3 up inc=1 granted=99999 ge=1",
		"heartbeat-response from=2 vote=1:1! sent=11006 promise=1000", "heartbeat-response from=3 vote=1:1! sent=11006 promise=1000")
	want(t, play(t, s, "tick at=11600"), "SendHeartbeat to=n3")
	// Only n2 accepts; the next heartbeat wakes it, and ends its promise by link.
	play(t, s, "heartbeat-response at=11601 from=2 vote=1:1! sent=11600 quiesced last=1.2 promise=1000")
	want(t, play(t, s, "tick at=11701"), "BroadcastHeartbeat")
	if s.e.LeaseValid(50000) {
		t.Error("it leans on a follower that may be awake")
	}
	// An acceptance of the void offer comes late.
	play(t, s, "heartbeat-response from=3 vote=1:1! sent=11600 quiesced last=1.2 promise=1000")
	if s.e.quiesced {
		t.Error("asleep by a void offer")
	}
}

// The leader of a joint membership that leaves but one voter commits, and reads by lease, by that voter's promise alone. It may not be
// forgotten in a restart (rule Engine2): the last voter would win the next term on the spot.
func TestTrapLastVoterKeepsTheStartLease(t *testing.T) {
	s := &script{}
	play(t, s, "new self=2 voters=2 applied=1.1 purged=1.1 runs=3.2-4 committed=3.3 vote=3:1! lease=1000")
	wantNot(t, play(t, s, "tick at=10"), "SaveVote")
	wantNot(t, play(t, s, "tick at=999"), "SaveVote")
	want(t, play(t, s, "tick at=2000"), "SaveVote")

	s = &script{}
	play(t, s, "new self=2 voters=2 applied=1.1 purged=1.1 runs=3.2-4 committed=3.3 vote=3:2! lease=1000")
	want(t, play(t, s, "tick at=10"), "SaveVote")
}

func TestTrapPeerDownWakesAndOrdersTheSurvivors(t *testing.T) {
	order := map[Instant]NodeID{}
	for n := 2; n <= 3; n++ {
		s := &script{}
		play(t, s, strings.Replace(follower3, "self=2", "self="+string(rune('0'+n)), 1), "tick at=10", "append-request at=20 from=1 vote=3:1! prev=1.1 seq=1")
		play(t, s, "peer-down at=2000 node=1")
		order[s.e.Deadline()] = NodeID(n)
	}
	if len(order) != 2 || order[2000] == 0 || order[3000] == 0 {
		t.Errorf("first at once, the next an election timeout later: %v", order)
	}
}

func TestTrapTruncatingWhatIsCommittedPanics(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"runs=1.2-4 committed=1.4", "tick at=10")
	defer func() {
		if recover() == nil {
			t.Error("the shard must fail loudly")
		}
	}()
	play(t, s, "append-request from=1 vote=3:1! prev=1.2 runs=3.3-3 seq=1")
}

func TestTrapCommitIsBoundedByWhatIsVerified(t *testing.T) {
	s := &script{}
	// Entries 2.5..9 are of a former leader; only up to 1.4 is the log known to be the new one's.
	play(t, s, follower3+"vote=3:1! runs=1.2-4,2.5-9", "tick at=10", "append-request from=1 vote=3:1! prev=1.4 seq=1")
	out := play(t, s, "heartbeat from=1 vote=3:1! commit=3.8 round=1 sent=5")
	want(t, out, "SaveCommitted id=1.4")
	want(t, out, "Respond to=n1 heartbeat{vote=3:1! round=1 sent=5 promise=1000 asleep=false last=2.9 behind=true}")
}

func TestUncommittedBytes(t *testing.T) {
	u := &uncommitted{}
	for i := uint64(1); i <= 20; i++ {
		u.add(i, 10)
	}
	if u.n != byteSlotsMax || u.sum != 200 || u.fits(1, 200) || !u.fits(1, 201) || !u.fits(1, 0) {
		t.Fatal(u)
	}
	u.release(7)
	if u.sum != 130 {
		t.Fatal(u.sum)
	}
	if u.release(19); u.sum != 130 {
		t.Fatal("a merged slot is released as a whole", u.sum)
	}
	if u.release(20); u.sum != 0 || !u.fits(1000, 1) {
		t.Fatal("the first batch always fits", u.sum)
	}
}

func TestMalformedAppendIsIgnored(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1!", "tick at=10")
	for _, runs := range []string{"3.3-4", "3.2-4,3.6-7", "3.2-4,2.5-5", "3.4-2", "4.2-3"} {
		if out := play(t, s, "append-request from=1 vote=3:1! prev=1.1 seq=1 runs="+runs); len(out) != 0 {
			t.Errorf("%s: %q", runs, out)
		}
	}
}

// A candidate that lacks what a voter has cannot win without it: the voter does not wait until the candidate has tried for a whole timeout.
func TestVoterWithTheBetterLogTakesItsTurn(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1! runs=3.2-9", "tick at=10")
	before := s.e.Deadline()
	play(t, s, "vote-request from=3 pre=true vote=4:3 last=3.9")
	if got := s.e.Deadline(); got != before {
		t.Fatalf("granting a pre-vote moved the timer from %d to %d", before, got)
	}
	want(t, play(t, s, "vote-request from=3 pre=true vote=4:3 last=3.8"), "Respond to=n3 vote{")
	if got := s.e.Deadline(); got > s.now+Instant(s.e.cfg.ElectionTimeoutMin/8) {
		t.Errorf("refused a candidate whose log is behind at %d, and campaigns only at %d", s.now, got)
	}
}

// Two of three are left, each a candidate with its own vote in the same term: neither can win. The one with the longer log, or else the first in the order, asks again
// soon; the other gives it a whole timeout.
func TestSplitVoteIsNotWaitedOut(t *testing.T) {
	for _, c := range []struct {
		last  string
		again func(s *script) bool
	}{
		{"3.8", func(*script) bool { return true }},
		{"3.9", func(s *script) bool { return s.e.turn(s.e.self) < s.e.turn(peer(1)) }},
		{"3.10", func(*script) bool { return false }},
	} {
		seen := map[bool]bool{}
		for seed := range uint64(8) {
			s := &script{}
			play(t, s, follower3+"vote=3:1! runs=3.2-9")
			s.e.seed = seed
			play(t, s, "tick at=10", "tick at=20000", "vote-response from=1 pre granted request=4:2 vote=3:1!", "flush")
			before := s.e.Deadline()
			wantNot(t, play(t, s, "vote-request from=1 vote=4:1 last="+c.last, "flush"), "Respond to=n1 vote{pre=false granted=true")
			want, d := before, s.e.Deadline()
			if again := c.again(s); again {
				seen[again] = true
				want = s.now + Instant(s.e.cfg.ElectionTimeoutMin/4)
				if d < s.now+Instant(s.e.cfg.ElectionTimeoutMin/8) || d > want {
					t.Errorf("last %s, seed %d: at %d it asks again at %d", c.last, seed, s.now, d)
				}
				if out := play(t, s, fmt.Sprintf("tick at=%d", d)); !causes(out, "SendPreVote vote=5:2") {
					t.Errorf("last %s, seed %d: %q", c.last, seed, out)
				}
			} else if seen[again] = true; d != want {
				t.Errorf("last %s, seed %d: its timer went from %d to %d", c.last, seed, before, d)
			}
		}
		if c.last == "3.9" && len(seen) != 2 {
			t.Error("with equal logs it is always the same one")
		}
	}
}

// The promises to a dead leader end at slightly different times: who is refused because of one asks again soon, and then ever later.
func TestRefusalsBackOffFromAQuarterTimeout(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1! runs=3.2-9", "tick at=5000")
	T := Instant(s.e.cfg.ElectionTimeoutMin)
	for i, least := range []Instant{T / 4, T / 2, T, 2 * T, 2 * T} {
		s.feed(tickAt(s))
		s.feed(&VoteResponse{From: peer(3), Pre: true, Request: Vote{Term: 4, Peer: peer(2)}, Vote: s.e.vote, LiveLeader: true})
		if wait := s.e.Deadline() - s.now; wait < least || wait > least+least/2 {
			t.Errorf("refusal %d: asks again after %d, want %d to %d", i, wait, least, least+least/2)
		}
	}
}

// Live4, N8: a node that comes or goes changes whose promises stand: who was refused asks again soon, as if for the first time.
func TestRefusalsAreForgottenWhenNodesComeAndGo(t *testing.T) {
	for _, news := range []Event{&PeerDown{Node: 1}, &PeerUp{Node: 1, Incarnation: 2}, &PeerDown{Node: 3}, &PeerUp{Node: 3, Incarnation: 1}} {
		s := &script{}
		play(t, s, follower3+"vote=3:1! runs=3.2-9", "tick at=5000")
		T := Instant(s.e.cfg.ElectionTimeoutMin)
		refused := func() Instant {
			s.feed(tickAt(s))
			s.feed(&VoteResponse{From: peer(3), Pre: true, Request: Vote{Term: 4, Peer: peer(2)}, Vote: s.e.vote, LiveLeader: true})
			return s.e.Deadline() - s.now
		}
		for range 4 {
			refused()
		}
		s.feed(news)
		if wait := refused(); wait < T/4 || wait > T/4+T/8 {
			t.Errorf("%T %+v: asks again after %d, want %d to %d", news, news, wait, T/4, T/4+T/8)
		}
	}
}

// tickAt moves the clock to the deadline.
func tickAt(s *script) Event {
	s.now = s.e.Deadline()
	return &Tick{}
}
