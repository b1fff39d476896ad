package engine

import "testing"

// FAULTS P8: a snapshot that comes while another one is being installed is rejected, and so is one that is no news; only the end of the one that is
// being installed counts.
func TestRuleOneSnapshotAtATime(t *testing.T) {
	s := &script{}
	play(t, s, follower3+"vote=3:1!", "tick at=10")
	want(t, play(t, s, "snapshot token=1 from=1 vote=3:1! stream=2 last=3.9 membat=1.1 voters=1,2,3"), "InstallSnapshot token=1")
	out := play(t, s, "snapshot token=2 from=1 vote=3:1! stream=3 last=3.12 membat=1.1 voters=1,2,3")
	want(t, out, "RejectSnapshot token=2")
	want(t, out, "Respond to=n1 snapshot{ok=false")
	wantNot(t, out, "InstallSnapshot")
	wantNot(t, play(t, s, "append-request from=1 vote=3:1! prev=1.1 runs=3.2-4 commit=3.4 seq=1", "flush"), "Apply")
	if out := play(t, s, "installed token=2 last=3.12 membat=1.1 voters=1,2,3"); len(out) != 0 || s.e.applied.Index != 1 {
		t.Errorf("the rejected one is installed: %q, applied %v", out, s.e.applied)
	}
	want(t, play(t, s, "installed token=1 last=3.9 membat=1.1 voters=1,2,3"), "TruncateLog 2..0")
	if s.e.applied != (LogID{3, 9}) {
		t.Errorf("applied %v", s.e.applied)
	}
	for _, last := range []string{"3.9", "3.7"} {
		out := play(t, s, "flush", "snapshot token=3 from=1 vote=3:1! stream=4 last="+last+" membat=1.1 voters=1,2,3")
		want(t, out, "RejectSnapshot token=3")
		want(t, out, "Respond to=n1 snapshot{ok=true match=3.9")
	}
	// One that had come too late is not taken over.
	play(t, s, "snapshot token=4 from=1 vote=3:1! stream=5 last=3.20 membat=1.1 voters=1,2,3")
	want(t, play(t, s, "installed token=4 superseded last=3.20 membat=1.1 voters=1,2,3"), "Respond to=n1 snapshot{ok=false")
	if s.e.applied != (LogID{3, 9}) {
		t.Errorf("applied %v", s.e.applied)
	}
}

// FAULTS P8: what is said of an earlier snapshot says nothing of the one that is on its way.
func TestRuleSnapshotIsKnownByItsStream(t *testing.T) {
	s := &script{}
	lead(t, s)
	f := s.e.lead.find(peer(2))
	empty := func() []string {
		return s.feed(&AppendResponse{From: peer(2), Vote: s.e.vote, Stream: f.stream, Seq: f.seq, Uninitialised: true, Promise: 1000})
	}
	beat := func() []string {
		s.now += 100
		holds(s, LogID{1, 2}, 3)
		return s.feed(&Tick{})
	}
	want(t, empty(), "ReplicateSnapshot to=n2")
	old := f.stream
	s.feed(&SnapshotFailed{To: peer(2), Stream: old})
	want(t, beat(), "Replicate to=n2") // it is asked again
	want(t, empty(), "ReplicateSnapshot to=n2")
	s.feed(&SnapshotFailed{To: peer(2), Stream: old})
	wantNot(t, beat(), "Replicate to=n2")
	s.feed(&SnapshotResponse{From: peer(2), Vote: s.e.vote, Stream: old, Accepted: true, Match: LogID{1, 2}})
	if f.state != ProgressSnapshot {
		t.Error("the answer to an earlier snapshot ended the wait for this one")
	}
	s.feed(&SnapshotResponse{From: peer(2), Vote: s.e.vote, Stream: f.stream, Accepted: true, Match: LogID{1, 2}})
	if f.state == ProgressSnapshot || f.match != 2 {
		t.Errorf("it is installed: %+v", f)
	}
}
