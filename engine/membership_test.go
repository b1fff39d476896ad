package engine

import "testing"

// holds answers the leader for its followers: each holds the log up to id, durably.
func holds(s *script, id LogID, from ...int) (out []string) {
	for _, n := range from {
		f := s.e.lead.find(peer(n))
		if f == nil {
			continue // nobody asks it, or listens
		}
		out = append(out, s.feed(&AppendResponse{From: peer(n), Vote: s.e.vote, Stream: f.stream, Seq: f.seq, SentAt: s.now, Success: true, Match: id, Promise: 1000})...)
	}
	return out
}

// FAULTS M1: one change at a time; voters change by way of a joint membership, in which each set has a majority of its own; a new voter is a learner
// that has caught up.
func TestRuleOneChangeAtATime(t *testing.T) {
	for _, last := range []int{2, 4} { // who completes the quorum: of the old set, of the new one
		s := &script{}
		lead(t, s)
		want(t, play(t, s, "change token=1 voters=1,2,3 learners=4"), "AppendInputEntries token=1 kind=2 3..3 membership=1,2,3+4")
		want(t, play(t, s, "change token=2 voters=1,2,3"), "Refuse to=n1 token=2 reason=3")
		play(t, s, "flush")
		want(t, holds(s, LogID{1, 3}, 2), "SaveCommitted id=1.3")
		want(t, play(t, s, "change token=3 voters=1,3,4"), "Refuse to=n1 token=3 reason=5")
		holds(s, LogID{1, 3}, 4)
		want(t, play(t, s, "change token=4 voters=1,3,4"), "AppendInputEntries token=4 kind=2 4..4 membership=1,2,3/1,3,4+")
		want(t, play(t, s, "change token=5 voters=1,2"), "Refuse to=n1 token=5 reason=3")
		play(t, s, "flush")
		wantNot(t, holds(s, LogID{1, 4}, 6-last), "SaveCommitted")
		out := holds(s, LogID{1, 4}, last)
		want(t, out, "SaveCommitted id=1.4")
		want(t, out, "AppendInputEntries kind=2 5..5 membership=1,3,4+")
		want(t, play(t, s, "change token=6 voters=1,3"), "Refuse to=n1 token=6 reason=3")
		play(t, s, "flush")
		want(t, holds(s, LogID{1, 5}, 4), "SaveCommitted id=1.5")
		want(t, play(t, s, "change token=7 voters=1,1"), "Refuse to=n1 token=7 reason=5")
		want(t, play(t, s, "change token=7 voters=1,3"), "AppendInputEntries token=7 kind=2 6..6 membership=1,3,4/1,3+")
	}
}

// FAULTS M2: a membership counts from its append on, for an election and for a commit, and after a restart too, whatever is applied.
func TestRuleMembershipCountsBeforeItIsApplied(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3,4,5 membat=3.4 previous=1,2,3 applied=1.1 purged=1.1 runs=3.2-4 vote=3:2")
	for _, grant := range []string{"pre granted request=4:1 vote=3:2", "granted request=4:1 vote=4:1"} {
		play(t, s, "tick at=10", "tick at=3000", "flush")
		before := s.e.Status()
		play(t, s, "vote-response from=2 "+grant)
		if st := s.e.Status(); st.Role != before.Role || st.Vote != before.Vote {
			t.Fatalf("two of five made it %v with vote %v", st.Role, st.Vote)
		}
		play(t, s, "vote-response from=4 "+grant)
	}
	if !s.e.IsLeader() {
		t.Fatalf("three of five have voted: %+v", s.e.Status())
	}
	play(t, s, "flush")
	wantNot(t, holds(s, LogID{4, 5}, 2), "SaveCommitted")
	want(t, holds(s, LogID{4, 5}, 5), "SaveCommitted id=4.5")
}

// FAULTS M3, 2.6: who does not know that it votes gives its vote, and to whom it does not know: the candidate may know a newer membership.
func TestRuleWhoDoesNotKnowThatItVotesVotes(t *testing.T) {
	for what, start := range map[string]string{
		"a learner": "new self=4 voters=1,2,3 learners=4 applied=1.1 purged=1.1 runs=3.2-4 vote=3:1!",
		"a voter":   "new self=4 voters=1,2,4 applied=1.1 purged=1.1 runs=3.2-4 vote=3:1!",
		"one that holds nothing, and is to be filled by a split": "new self=4",
	} {
		s := &script{}
		play(t, s, start, "tick at=10")
		if out := play(t, s, "vote-request at=20 from=3 pre vote=4:3 last=3.9"); !causes(out, "Respond to=n3 vote{pre=true granted=true") {
			t.Errorf("%s, a pre-vote: %q", what, out)
		}
		play(t, s, "vote-request at=20 from=3 vote=4:3 last=3.9")
		if out := play(t, s, "flush"); !causes(out, "Respond to=n3 vote{pre=false granted=true") {
			t.Errorf("%s, a vote: %q", what, out)
		}
	}
}

// FAULTS M4: a leader that is not to vote any more does not count itself, and goes when that is applied.
func TestRuleRemovedLeaderGoes(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "change token=1 voters=2,3", "flush")
	want(t, holds(s, LogID{1, 3}, 2, 3), "AppendInputEntries kind=2 4..4 membership=2,3+")
	play(t, s, "flush")
	wantNot(t, holds(s, LogID{1, 4}, 2), "SaveCommitted")
	want(t, holds(s, LogID{1, 4}, 3), "SaveCommitted id=1.4")
	play(t, s, "applied id=1.3")
	if !s.e.IsLeader() {
		t.Error("it goes before the others can know that the change is committed")
	}
	out := play(t, s, "applied id=1.4")
	want(t, out, "ReplicateCommitted vote=1:1! id=1.4")
	for _, to := range []string{"n2", "n3"} {
		want(t, out, "SendHeartbeat to="+to+" vote=1:1! commit=0.0 round=0 sent=11006 quiesce=false last=0.0 probe=false resigned=true")
	}
	if d := s.e.Deadline(); s.e.IsLeader() || d != 0 {
		t.Errorf("leader %v, it campaigns at %d", s.e.IsLeader(), d)
	}
}

// Raft thesis 4.2.2: a voter that is to leave may hold the only log that can win, and campaigns until that is committed; its own vote does not count.
func TestRuleLeavingVoterCampaigns(t *testing.T) {
	leaving := func(commit string) *script {
		s := &script{}
		play(t, s, follower3, "tick at=10", "append-request at=20 from=1 vote=3:1! prev=1.1 runs=3.2-4 membat=3.4 voters=1,3 seq=1 commit="+commit, "flush")
		return s
	}
	s := leaving("3.3")
	want(t, play(t, s, "tick at=5000"), "SendPreVote vote=4:2")
	wantNot(t, play(t, s, "vote-response from=1 pre granted request=4:2 vote=3:1!"), "SaveVote")
	want(t, play(t, s, "vote-response from=3 pre granted request=4:2 vote=3:1!"), "SaveVote vote=4:2")
	wantNot(t, play(t, s, "flush", "vote-response from=1 granted request=4:2 vote=4:2"), "SaveVote")
	want(t, play(t, s, "vote-response from=3 granted request=4:2 vote=4:2"), "SaveVote vote=4:2!")

	s = leaving("3.4")
	wantNot(t, play(t, s, "tick at=5000", "campaign"), "SendPreVote")
	if d := s.e.Deadline(); d != 0 {
		t.Errorf("it has left, and campaigns at %d", d)
	}
}

// FAULTS M6: whoever finds a joint membership in its log needs both quorums, and leaves it, when an entry of its own term is committed.
func TestRuleFoundJointMembershipIsLeft(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3/1,4,5 membat=2.3 applied=1.1 purged=1.1 committed=2.3 runs=2.2-3 vote=2:2", "tick at=10", "tick at=3000")
	for _, grant := range []string{"pre granted request=3:1 vote=2:2", "granted request=3:1 vote=3:1"} {
		out := append(play(t, s, "vote-response from=2 "+grant), play(t, s, "vote-response from=3 "+grant)...)
		wantNot(t, out, "SaveVote")
		out = play(t, s, "vote-response from=5 "+grant)
		want(t, out, "SaveVote")
		wantNot(t, append(out, play(t, s, "flush")...), "AppendInputEntries kind=2")
	}
	if !s.e.IsLeader() {
		t.Fatalf("%+v", s.e.Status())
	}
	wantNot(t, holds(s, LogID{3, 4}, 4, 5), "SaveCommitted")
	out := holds(s, LogID{3, 4}, 3)
	want(t, out, "SaveCommitted id=3.4")
	want(t, out, "AppendInputEntries kind=2 5..5 membership=1,4,5+")
}

// FAULTS M7: what a replica is goes by the membership in its log, and comes back with the one before when that is cut off.
func TestRuleRoleFollowsTheLog(t *testing.T) {
	s := &script{}
	play(t, s, "new self=4 voters=1,2,3 learners=4 applied=1.1 purged=1.1", "tick at=10", "append-request at=20 from=1 vote=3:1! prev=1.1 runs=3.2-4 membat=3.4 voters=1,2,3,4 seq=1")
	if st := s.e.Status(); st.Role != RoleFollower || st.Deadline == 0 {
		t.Errorf("promoted: %+v", st)
	}
	play(t, s, "append-request at=30 from=3 vote=4:3! prev=3.3 runs=4.4-4 seq=1")
	if st := s.e.Status(); st.Role != RoleLearner || st.Deadline != 0 {
		t.Errorf("the promotion is cut off: %+v", st)
	}
}

// FAULTS M8: a membership behind a snapshot stays, and if that is cut off, the snapshot's comes back.
func TestRuleMembershipBehindASnapshotStays(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1!", "tick at=10", "append-request from=1 vote=3:1! prev=1.1 runs=3.2-9 membat=3.8 voters=1,2,5 seq=1", "flush",
		"snapshot token=1 from=1 vote=3:1! stream=2 last=3.6 membat=3.4 voters=1,2", "installed token=1 last=3.6 membat=3.4 voters=1,2")
	if got := memb(s.e.memb.Membership); got != "1,2,5+" {
		t.Errorf("behind the snapshot: %s", got)
	}
	play(t, s, "append-request from=3 vote=4:3! prev=3.7 runs=4.8-8 seq=1")
	if got := memb(s.e.memb.Membership); got != "1,2+" {
		t.Errorf("cut off: %s", got)
	}
}

// FAULTS M9: a replica that was removed, and does not know it, disturbs neither the leader nor who has promised to follow it; and its own term
// stays, so that it does not when it is heard again.
func TestRuleRemovedReplicaDisturbsNobody(t *testing.T) {
	leader, follower := &script{}, &script{}
	lead(t, leader)
	play(t, follower, follower3+"vote=1:1! runs=1.2-2", "tick at=10", "append-request at=11000 from=1 vote=1:1! prev=1.2 seq=1 sent=11000")
	for _, s := range []*script{leader, follower} {
		for _, pre := range []string{"pre", ""} {
			out := play(t, s, "vote-request at=11006 from=4 "+pre+" vote=9:4 last=9.9")
			want(t, out, "Respond to=n4 vote{")
			wantNot(t, out, "SaveVote")
			for _, o := range []string{"Respond to=n4 vote{pre=true granted=true", "Respond to=n4 vote{pre=false granted=true"} {
				wantNot(t, out, o)
			}
		}
	}
	if !leader.e.IsLeader() {
		t.Error("the leader has gone")
	}
	removed := &script{}
	play(t, removed, "new self=4 voters=1,2,3,4 applied=1.1 purged=1.1 runs=1.2-2 vote=1:1!", "tick at=10")
	asked := 0
	for range 10 {
		tick := tickAt(removed)
		out := removed.feed(tick)
		wantNot(t, out, "SaveVote")
		if causes(out, "SendPreVote") {
			asked++
		}
	}
	if asked == 0 {
		t.Error("it never asked")
	}
}

// FAULTS M14: what a leader that is cut off has changed is cut off when it hears of the next one; until then it commits nothing, and changes nothing more.
func TestRuleIsolatedLeadersChangeIsCutOff(t *testing.T) {
	for _, change := range []string{"voters=1,2,3 learners=4", "voters=1", "voters=2,3"} {
		s := &script{}
		lead(t, s)
		want(t, play(t, s, "change token=1 "+change), "AppendInputEntries token=1 kind=2 3..3")
		wantNot(t, play(t, s, "flush"), "SaveCommitted")
		want(t, play(t, s, "change token=2 voters=1,2"), "Refuse to=n1 token=2 reason=3")
		want(t, play(t, s, "append-request at=11500 from=2 vote=2:2! prev=1.2 runs=2.3-3 seq=1"), "TruncateLog 3..0")
		if st := s.e.Status(); memb(st.Membership.Membership) != "1,2,3+" || st.Role != RoleFollower || st.Last != (LogID{2, 3}) {
			t.Errorf("%s: %s", change, s.status())
		}
	}
}
