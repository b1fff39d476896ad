package engine

import "testing"

// FAULTS M13: office is handed to a voter that has caught up, and nothing is accepted meanwhile that it would have to catch up with.
func TestRuleTransferGoesToAVoterThatHasCaughtUp(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "change token=1 voters=1,2,3 learners=4", "flush")
	holds(s, LogID{1, 3}, 2, 4)
	play(t, s, "applied id=1.3")
	for _, to := range []string{"1", "4", "9"} { // itself, a learner, a stranger
		want(t, play(t, s, "transfer token=2 to="+to), "Refuse to=n1 token=2 reason=5")
	}
	wantNot(t, play(t, s, "transfer token=3 to=3"), "SendTimeoutNow") // it holds 1.2
	want(t, play(t, s, "write token=4"), "Refuse to=n1 token=4 reason=4")
	want(t, play(t, s, "change token=5 voters=1,2,3"), "Refuse to=n1 token=5 reason=4")
	want(t, play(t, s, "transfer token=6 to=2"), "Refuse to=n1 token=6 reason=3")
	wantNot(t, holds(s, LogID{1, 3}, 2), "SendTimeoutNow")
	want(t, holds(s, LogID{1, 3}, 3), "SendTimeoutNow to=n3 vote=1:1!")
}

// A target that does not catch up gets no office: after an election timeout the leader goes on.
func TestRuleTransferIsGivenUp(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "write token=1", "flush")
	holds(s, LogID{1, 3}, 2)
	play(t, s, "transfer at=11010 token=2 to=3")
	s.now = 11_900
	holds(s, LogID{1, 3}, 2)
	want(t, play(t, s, "write at=12009 token=3"), "Refuse to=n1 token=3 reason=4")
	play(t, s, "tick at=12010")
	want(t, play(t, s, "write token=4"), "AppendInputEntries token=4")
	play(t, s, "flush")
	wantNot(t, holds(s, LogID{1, 4}, 3), "SendTimeoutNow")
}

// A leader that has not applied its blank entry hands nothing over: it does not know yet what is committed.
func TestRuleNoTransferBeforeTheBlankEntry(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1", "tick at=10000", "tick at=11000", "vote-response at=11001 from=2 pre granted request=1:1 vote=0:0",
		"flush", "vote-response at=11003 from=3 granted request=1:1 vote=1:1", "flush")
	holds(s, LogID{1, 2}, 2)
	want(t, play(t, s, "transfer token=1 to=2"), "Refuse to=n1 token=1 reason=5")
	want(t, play(t, s, "applied id=1.2", "transfer token=2 to=2"), "SendTimeoutNow to=n2")
}

// TimeoutNow is obeyed by a voter, from the leader that it follows, and not within the start lease.
func TestRuleTimeoutNowIsOfTheOwnLeader(t *testing.T) {
	const order = "timeout-now at=40 from=1 vote=3:1!"
	for _, c := range []struct {
		what, start, order string
		obeys              bool
	}{
		{"of its leader", follower3, order, true},
		{"of another one", follower3, "timeout-now at=40 from=3 vote=3:1!", false},
		{"of an earlier term", follower3, "timeout-now at=40 from=1 vote=2:1!", false},
		{"within the start lease", follower3 + "lease=100 ", order, false},
		{"to a learner", "new self=2 voters=1,3 learners=2 applied=1.1 purged=1.1 ", order, false},
		{"to a removed one", "new self=2 voters=1,3 applied=1.1 purged=1.1 ", order, false},
	} {
		s := &script{}
		play(t, s, c.start+"vote=3:1! runs=3.2-4", "tick at=10", "append-request at=20 from=1 vote=3:1! prev=3.4 commit=3.4 seq=1 sent=5")
		if out := play(t, s, c.order); causes(out, "SaveVote vote=4:2") != c.obeys {
			t.Errorf("%s: %q", c.what, out)
		}
	}
}
