package engine

import "testing"

// Each test here breaks one rule of the protocols where it is decided, so that whoever drops the rule learns it at once.

// asleep makes s a leader of three that sleeps with both followers.
func asleep(t *testing.T, s *script) {
	t.Helper()
	lead(t, s)
	play(t, s, "link node=2 up inc=1 granted=99999 ge=1", "link node=3 up inc=1 granted=99999 ge=1", "tick at=11600",
		"heartbeat-response at=11601 from=2 vote=1:1! sent=11600 quiesced last=1.2 promise=1000",
		"heartbeat-response at=11601 from=3 vote=1:1! sent=11600 quiesced last=1.2 promise=1000")
	if !s.e.quiesced {
		t.Fatal("awake")
	}
}

// Live3: a sleeping leader that has lost its quorum wakes, and asks who is there.
func TestRuleSleepsOnlyWithAQuorum(t *testing.T) {
	s := &script{}
	asleep(t, s)
	play(t, s, "link node=2 inc=1 granted=11700 ge=1", "peer-down at=12000 node=2")
	if !s.e.quiesced {
		t.Error("awake although it and n3 are a quorum")
	}
	play(t, s, "link node=3 inc=1 granted=11700 ge=1", "peer-down at=12001 node=3")
	want(t, play(t, s, "tick at=12001"), "BroadcastHeartbeat")
	if s.e.quiesced {
		t.Error("it sleeps alone")
	}
	// Nobody answers: check-quorum ends its office.
	play(t, s, "tick at=15000", "tick at=18000")
	if s.e.IsLeader() {
		t.Error("it leads alone")
	}
}

// Live3: a node that comes back as another incarnation has forgotten that it sleeps.
func TestRuleReturningNodeIsWoken(t *testing.T) {
	for _, c := range []struct {
		up   string
		wake bool
	}{{"node=2 inc=1", false}, {"node=2 inc=2", true}} {
		s := &script{}
		asleep(t, s)
		play(t, s, "link up ge=1 granted=99999 "+c.up, "peer-up at=12000 "+c.up)
		if s.e.quiesced == c.wake {
			t.Errorf("peer-up %s: asleep %v", c.up, s.e.quiesced)
		}
		if out := play(t, s, "tick at=12000"); causes(out, "BroadcastHeartbeat") != c.wake {
			t.Errorf("peer-up %s: %q", c.up, out)
		}
	}
}

// Live3, N8: a sleeping leader that has let a node go, and slept on with the others, wakes when that comes back, although it is the same process: what it was not told it
// would never hear.
func TestRuleNodeThatWasAwayIsWoken(t *testing.T) {
	s := &script{}
	asleep(t, s)
	play(t, s, "link node=2 inc=1 granted=11700 ge=1", "peer-down at=12000 node=2")
	if !s.e.quiesced {
		t.Fatal("awake although it and n3 are a quorum")
	}
	play(t, s, "link node=2 up inc=1 granted=99999 ge=2", "peer-up at=12500 node=2 inc=1")
	if s.e.quiesced || !causes(play(t, s, "tick at=12500"), "BroadcastHeartbeat") {
		t.Error("it sleeps on")
	}
}

// N8: what was lost on the way to a node that went is sent again as soon as it is back.
func TestRuleNodeThatWasAwayIsProbed(t *testing.T) {
	s := &script{}
	lead(t, s)
	play(t, s, "write token=1", "flush", "replicate-failed to=2 stream=1")
	want(t, play(t, s, "peer-up node=2 inc=1"), "Replicate to=n2")
}

// An awake leader with nothing to say heartbeats when half of a lease is over, and then in every interval until all have answered.
func TestRuleHeartbeatsKeepLeases(t *testing.T) {
	s := &script{}
	lead(t, s) // leases until 11953
	wantNot(t, play(t, s, "tick at=11103"), "BroadcastHeartbeat")
	if d := s.e.Deadline(); d != 11453 {
		t.Fatalf("the next tick is wanted at %d", d)
	}
	want(t, play(t, s, "tick at=11453"), "BroadcastHeartbeat")
	answer := func(at, from, sent string) {
		play(t, s, "heartbeat-response at="+at+" from="+from+" vote=1:1! sent="+sent+" promise=1000")
	}
	answer("11460", "2", "11453")
	want(t, play(t, s, "tick at=11553"), "BroadcastHeartbeat")
	answer("11560", "3", "11453")
	wantNot(t, play(t, s, "tick at=11653"), "BroadcastHeartbeat")
	// What is in flight for half an election timeout is lost; a follower that was lost is looked at after an interval.
	play(t, s, "write at=11660 token=1")
	wantNot(t, play(t, s, "tick at=11753"), "BroadcastHeartbeat")
	if d := s.e.Deadline(); d != 11903 { // the leases are of 11453
		t.Fatalf("the next tick is wanted at %d, a write is in flight", d)
	}
	play(t, s, "append-response at=11760 from=2 vote=1:1! stream=1 seq=2 sent=11660 ok match=1.3 promise=1000",
		"append-response at=11760 from=3 vote=1:1! stream=2 seq=2 sent=11660 ok match=1.3 promise=1000", "tick at=11903")
	if d := s.e.Deadline(); d != 12110 {
		t.Fatalf("the next tick is wanted at %d, half of the leases is over at 12110", d)
	}
	play(t, s, "replicate-failed at=11910 to=2 stream=1")
	if d := s.e.Deadline(); d != 12010 {
		t.Fatalf("the next tick is wanted at %d, a follower is lost", d)
	}
}

// Live4: a sleeper that somebody asks for asks its leader for this very shard, and starts its ordinary timer.
func TestRuleProvokedSleeperDoubtsItsLeader(t *testing.T) {
	for _, provoke := range []string{"wake", "read token=1", "write token=1", "vote-request from=3 pre vote=4:3 last=1.4"} {
		s := &script{}
		play(t, s, follower3+"vote=2:1! runs=1.2-4 committed=1.4", "tick at=10", "applied id=1.4", "link node=1 up inc=5 promised=3000 pe=1",
			"append-request at=20 from=1 vote=2:1! prev=1.4 commit=1.4 stream=1 seq=1 sent=100",
			"heartbeat at=31 from=1 vote=2:1! commit=1.4 sent=120 quiesce last=1.4")
		if !s.e.quiesced || s.e.Deadline() != 0 {
			t.Fatal("awake")
		}
		s.now = 500
		want(t, play(t, s, provoke), "SendHeartbeat to=n1 vote=2:1! commit=0.0 round=0 sent=500 quiesce=false last=0.0 probe=true")
		if d := s.e.Deadline(); d < 1500 || d > 2500 {
			t.Errorf("%s: its timer is set to %d", provoke, d)
		}
	}
}

// Live3: a leader whose node comes back as another incarnation leads nothing any more, and will not say so by itself: who slept for it looks for
// another.
func TestRuleReturningLeaderIsReplaced(t *testing.T) {
	for _, c := range []struct {
		inc  string
		wake bool
	}{{"inc=5", false}, {"inc=6", true}} {
		s := &script{}
		play(t, s, follower3+"vote=2:1! runs=1.2-4 committed=1.4", "tick at=10", "applied id=1.4", "link node=1 up inc=5 promised=3000 pe=1",
			"append-request at=20 from=1 vote=2:1! prev=1.4 commit=1.4 stream=1 seq=1 sent=100",
			"heartbeat at=31 from=1 vote=2:1! commit=1.4 sent=120 quiesce last=1.4")
		if !s.e.quiesced {
			t.Fatal("awake")
		}
		play(t, s, "link node=1 up promised=99999 pe=1 "+c.inc, "peer-up at=500 node=1 "+c.inc)
		if s.e.quiesced == c.wake {
			t.Errorf("%s: asleep %v", c.inc, s.e.quiesced)
		}
		if out := append(play(t, s, "tick at=4000"), play(t, s, "tick at=6000")...); causes(out, "SendPreVote") != c.wake {
			t.Errorf("%s: %q", c.inc, out)
		}
	}
}

// Live2: who has not all committed does not sleep, or the commit would never come.
func TestRuleSleepsOnlyWithAllCommitted(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=2:1! runs=1.2-4 committed=1.3", "tick at=10", "applied id=1.3", "link node=1 up inc=5 promised=3000 pe=1",
		"append-request at=20 from=1 vote=2:1! prev=1.4 commit=1.3 stream=1 seq=1 sent=100")
	want(t, play(t, s, "heartbeat at=31 from=1 vote=2:1! commit=1.3 sent=120 quiesce last=1.4"), "Respond to=n1 heartbeat{vote=2:1! round=0 sent=120 promise=1000 asleep=false")
}

// Split4: to a child that is not born yet nothing is sent that it does not need: its parent's split fills it. Only if that takes ten
// election time-outs, or if there is no parent, a snapshot does.
func TestRuleUnbornChildWaitsForItsParent(t *testing.T) {
	unborn := func(s *script, waiting bool) []string {
		f := s.e.lead.find(peer(2))
		return s.feed(&AppendResponse{From: peer(2), Vote: s.e.vote, Stream: f.stream, Seq: f.seq, Uninitialised: true, Waiting: waiting, Promise: 1000})
	}
	lonely := func(s *script) { // n3 alone has answered
		play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1", "tick at=10000", "tick at=11000",
			"vote-response at=11001 from=3 pre granted request=1:1 vote=0:0", "flush", "vote-response at=11003 from=3 granted request=1:1 vote=1:1", "flush")
	}
	s := &script{}
	lonely(s)
	for s.now < 20_900 {
		out := unborn(s, true)
		wantNot(t, out, "ReplicateSnapshot")
		wantNot(t, out, "Replicate ")
		s.now += 100
		s.feed(&HeartbeatResponse{From: peer(3), Vote: s.e.vote, Round: s.e.lead.round, SentAt: s.now - 100, Promise: 1000})
		wantNot(t, s.feed(&Tick{}), "ReplicateSnapshot")
	}
	s.now = 21_100
	want(t, unborn(s, true), "ReplicateSnapshot to=n2")

	s = &script{}
	lonely(s)
	want(t, unborn(s, false), "ReplicateSnapshot to=n2")
}

// Engine3: after TimeoutNow went out there is no lease for the rest of the term, even if the transfer comes to nothing.
func TestRuleNoLeaseAfterTimeoutNow(t *testing.T) {
	s := &script{}
	lead(t, s)
	if !s.e.LeaseValid(s.now) {
		t.Fatal("no lease")
	}
	want(t, play(t, s, "transfer token=1 to=2"), "SendTimeoutNow to=n2")
	for _, at := range []string{"11007", "12900"} {
		play(t, s, "heartbeat-response at="+at+" from=3 vote=1:1! sent="+at+" promise=1000")
		if s.e.LeaseValid(s.now) {
			t.Errorf("at %s it reads by a lease that TimeoutNow bypasses", at)
		}
	}
	wantNot(t, play(t, s, "read token=2"), "ReadReady")
}

// Engine2: a promise that a link extends dies with the link's epoch.
func TestRuleHealedLinkRevivesNoPromise(t *testing.T) {
	s := &script{}
	asleep(t, s)
	if !s.e.LeaseValid(50_000) {
		t.Fatal("the links extend no lease")
	}
	play(t, s, "link node=2 up inc=1 granted=99999 ge=2", "link node=3 up inc=1 granted=99999 ge=2")
	if s.e.LeaseValid(50_000) {
		t.Error("links that were broken and healed revive a lapsed promise")
	}
	play(t, s, "link node=2 up inc=2 granted=99999 ge=1", "link node=3 up inc=2 granted=99999 ge=1")
	if s.e.LeaseValid(50_000) {
		t.Error("the promise of another incarnation counts")
	}
}

// Engine2: a follower has promised to sleep, and messages that the leader sent before its offer come late, an older offer among them. What it has
// promised by link stands: its leader sleeps, and reads by that.
func TestRuleLateOffersTakeNoPromiseBack(t *testing.T) {
	for _, late := range [][]string{
		{"heartbeat at=40 from=1 vote=2:1! commit=1.4 round=3 sent=110"},
		{"heartbeat at=40 from=1 vote=2:1! commit=1.4 sent=90 quiesce last=1.4", "heartbeat at=41 from=1 vote=2:1! commit=1.4 round=3 sent=110"},
		{"heartbeat at=40 from=1 vote=2:1! commit=1.4 sent=90 quiesce last=1.4", "append-request at=41 from=1 vote=2:1! prev=1.4 commit=1.4 stream=1 seq=2 sent=110"},
	} {
		s := &script{}
		play(t, s, follower3+"vote=2:1! runs=1.2-4 committed=1.4", "tick at=10", "applied id=1.4", "link node=1 up inc=5 promised=9000 pe=1",
			"append-request at=20 from=1 vote=2:1! prev=1.4 commit=1.4 stream=1 seq=1 sent=80")
		want(t, play(t, s, "heartbeat at=31 from=1 vote=2:1! commit=1.4 sent=120 quiesce last=1.4"), "Respond to=n1 heartbeat{vote=2:1! round=0 sent=120 promise=1000 asleep=true")
		play(t, s, late...)
		if out := play(t, s, "vote-request at=8000 from=3 vote=3:3 last=1.4"); causes(out, "SaveVote") {
			t.Errorf("after %q it votes for another, though it sleeps for its leader until 9000: %q", late, out)
		}
		// A message that the leader sent later ends it.
		play(t, s, "heartbeat at=8001 from=1 vote=2:1! commit=1.4 round=4 sent=130")
		want(t, play(t, s, "vote-request at=9002 from=3 vote=3:3 last=1.4"), "SaveVote vote=3:3")
	}
}

// Engine2: a voter that was restarted gives no vote, its own included, until the promises that it has forgotten are over.
func TestRuleStartLease(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1! runs=3.2-4 lease=1000", "tick at=10")
	for _, pre := range []string{"pre ", ""} {
		out := play(t, s, "vote-request at=900 from=3 "+pre+"vote=4:3 last=3.4")
		want(t, out, "Respond to=n3 vote{")
		wantNot(t, out, "SaveVote vote=4:3")
		if causes(out, "Respond to=n3 vote{pre=true granted=true") {
			t.Errorf("%q", out)
		}
	}
	for at := Instant(10); at < 1000; at += 10 {
		s.now = at
		wantNot(t, s.feed(&Tick{}), "SendPreVote")
	}
	want(t, play(t, s, "vote-request at=1001 from=3 vote=4:3 last=3.4"), "SaveVote vote=4:3")
}

// Raft 5.2: one vote in a term, whoever asks, and after a restart too.
func TestRuleOneVoteInATerm(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=2:3 runs=1.2-4", "tick at=10")
	out := play(t, s, "vote-request from=1 vote=2:1 last=9.9", "flush")
	wantNot(t, out, "Respond to=n1 vote{pre=false granted=true")
	if st := s.e.Status(); st.Vote != (Vote{Term: 2, Peer: peer(3)}) {
		t.Errorf("its vote is %v", st.Vote)
	}
}

// FAULTS 2.4: a leader changes no membership before an entry of its own term is committed.
func TestRuleNoChangeBeforeOwnTerm(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1", "tick at=10000", "tick at=11000", "vote-response at=11001 from=2 pre granted request=1:1 vote=0:0",
		"flush", "vote-response at=11003 from=3 granted request=1:1 vote=1:1", "flush")
	out := play(t, s, "change token=7 voters=1,2,3 learners=4")
	want(t, out, "Refuse ")
	wantNot(t, out, "AppendInputEntries")
	play(t, s, "append-response from=2 vote=1:1! stream=1 seq=1 sent=11003 ok match=1.2 promise=1000", "applied id=1.2")
	want(t, play(t, s, "change token=8 voters=1,2,3 learners=4"), "AppendInputEntries")
}

// FAULTS 2.13: without a lease a read waits for a round that a quorum answers.
func TestRuleReadWithoutLeaseNeedsARound(t *testing.T) {
	s := &script{}
	lead(t, s)
	s.now = 13_000
	out := play(t, s, "read token=2")
	wantNot(t, out, "ReadReady")
	want(t, out, "BroadcastHeartbeat")
	wantNot(t, play(t, s, "heartbeat-response from=2 vote=1:1! round=0 sent=11006 promise=1000"), "ReadReady")
	s.feed(&HeartbeatResponse{From: peer(2), Vote: s.e.vote, Round: s.e.lead.round})
	if s.e.lead.reads.confirmed != 0 || s.e.lead.reads.round != 0 {
		t.Error("a quorum has answered, and the read waits on")
	}
}

// Rule Engine4: what a leader has inherited may have been acknowledged; it reads nothing before it has applied all that, its own blank entry included.
func TestRuleReadsWaitForTheBlankEntry(t *testing.T) {
	s := &script{}
	play(t, s, "new self=1 voters=1,2,3 applied=1.1 purged=1.1 runs=2.2-4 vote=2:1!", "tick at=10000", "tick at=11000",
		"vote-response at=11001 from=2 pre granted request=3:1 vote=2:1", "flush", "vote-response at=11003 from=2 granted request=3:1 vote=3:1", "flush")
	wantNot(t, play(t, s, "heartbeat-response at=11010 from=2 vote=3:1! sent=11003 promise=1000", "read token=1"), "ReadReady")
	if !s.e.IsLeader() || s.e.LeaseValid(s.now) {
		t.Errorf("leader %v, lease valid %v", s.e.IsLeader(), s.e.LeaseValid(s.now))
	}
	want(t, play(t, s, "append-response at=11011 from=2 vote=3:1! stream=1 seq=1 sent=11003 ok match=3.5 promise=1000"), "Apply 2..5")
	wantNot(t, play(t, s, "applied id=2.4"), "ReadReady")
	want(t, play(t, s, "applied id=3.5"), "ReadReady token=1")
	if !s.e.LeaseValid(s.now) {
		t.Error("all is applied, and there is no lease")
	}
}

// FAULTS 2.10: the log behind a snapshot is kept only if it holds the snapshot's last entry.
func TestRuleSnapshotEndsConflictingTail(t *testing.T) {
	for _, c := range []struct {
		runs string
		last LogID
	}{
		{"1.2-4,2.5-9", LogID{3, 6}}, // another term at the snapshot's end
		{"1.2-4,3.5-9", LogID{3, 9}}, // the same: what follows goes on
	} {
		s := &script{}
		play(t, s, follower3+"vote=3:1! runs="+c.runs, "tick at=10", "snapshot token=1 from=1 vote=3:1! stream=2 last=3.6 membat=1.1 voters=1,2,3")
		out := play(t, s, "installed token=1 last=3.6 membat=1.1 voters=1,2,3")
		if st := s.e.Status(); st.Last != c.last || st.Applied != (LogID{3, 6}) {
			t.Errorf("runs %s: %+v by %q", c.runs, st, out)
		}
	}
}

// FAULTS R27: a snapshot that ends at or below what is applied takes nothing back, neither when it arrives nor when it is in: what was applied
// while it was being installed counts. Its sender hears that all of it is there.
func TestRuleOlderSnapshotTakesNothingBack(t *testing.T) {
	same := func(s *script, before Status, what string) {
		t.Helper()
		if st := s.e.Status(); st.Last != before.Last || st.Applied != before.Applied || st.Committed != before.Committed || st.Purged != before.Purged ||
			st.Membership.LogID != before.Membership.LogID {
			t.Errorf("%s: %+v became %+v", what, before, st)
		}
	}
	start := func(applied string) *script {
		s := &script{}
		play(t, s, follower3+"vote=3:1! runs=3.2-9", "tick at=10", "append-request from=1 vote=3:1! prev=3.9 commit=3.8 seq=1")
		if applied != "" {
			play(t, s, "applied id="+applied)
		}
		return s
	}
	for _, last := range []string{"3.5", "3.7", "2.6"} {
		s := start("3.7")
		before := s.e.Status()
		out := play(t, s, "snapshot token=1 from=1 vote=3:1! stream=2 last="+last+" membat=1.1 voters=1,2,4")
		want(t, out, "RejectSnapshot token=1")
		want(t, out, "Respond to=n1 snapshot{ok=true match=3.7")
		wantNot(t, out, "InstallSnapshot")
		same(s, before, "arrived up to "+last)
	}
	for _, last := range []string{"3.5", "3.7"} {
		for _, superseded := range []string{"", " superseded"} {
			s := start("")
			meta := "last=" + last + " membat=1.1 voters=1,2,4"
			want(t, play(t, s, "snapshot token=1 from=1 vote=3:1! stream=2 "+meta), "InstallSnapshot token=1")
			play(t, s, "applied id=3.7")
			before := s.e.Status()
			out := play(t, s, "installed token=1 "+meta+superseded)
			want(t, out, "Respond to=n1 snapshot{ok=true match="+last)
			wantNot(t, out, "TruncateLog")
			wantNot(t, out, "PurgeLog")
			same(s, before, "installed up to "+last+superseded)
		}
	}
	// One that was not linked, although it is ahead: nothing of it is here.
	s := start("3.7")
	meta := "last=3.9 membat=1.1 voters=1,2,4"
	want(t, play(t, s, "snapshot token=1 from=1 vote=3:1! stream=2 "+meta), "InstallSnapshot token=1")
	before := s.e.Status()
	want(t, play(t, s, "installed token=1 "+meta+" superseded"), "Respond to=n1 snapshot{ok=false")
	same(s, before, "superseded")
}

// openraft #1808: a membership that a snapshot covers is the snapshot's.
func TestRuleMembershipIsTheSnapshots(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1! runs=3.2-9", "tick at=10", "snapshot token=1 from=1 vote=3:1! stream=2 last=3.6 membat=3.4 voters=1,2,4",
		"installed token=1 last=3.6 membat=3.4 voters=1,2,4")
	if got := memb(s.e.Status().Membership.Membership); got != "1,2,4+" {
		t.Errorf("membership %s", got)
	}
}
