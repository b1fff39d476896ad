package engine

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected output in testdata")

// TestGolden runs the scripts in testdata: a line is one event, the indented lines under it are the commands that it must
// cause, in order. Log ids are written term.index; votes term:node, with ! when committed.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) { runGolden(t, f) })
	}
}

func runGolden(t *testing.T, file string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	s := &script{}
	for n, line := range strings.Split(strings.TrimRight(string(raw), "\n"), "\n") {
		if strings.HasPrefix(line, "    ") {
			continue // expected output
		}
		got.WriteString(line + "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		out, err := s.step(line)
		if err != nil {
			t.Fatalf("%s:%d: %s: %v", file, n+1, line, err)
		}
		for _, o := range out {
			got.WriteString("    " + o + "\n")
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got.String() != string(raw) {
		t.Errorf("%s differs; run with -rewrite and review. Got:\n%s", file, got.String())
	}
}

// script is one engine under a script.
type script struct {
	e     *Engine
	links *Links
	now   Instant // ms
	args  map[string]string
	err   error
	out   []Command
}

func (s *script) step(line string) ([]string, error) {
	words := strings.Fields(line)
	s.args, s.err = map[string]string{}, nil
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		s.args[k] = v
	}
	s.now = max(s.now, Instant(s.num("at")))
	var out []string
	switch words[0] {
	case "new":
		s.boot()
	case "status":
		out = append(out, s.status())
	case "progress":
		for _, p := range s.e.Progress(nil) {
			out = append(out, fmt.Sprintf("n%d match=%s next=%d state=%d inflight=%d learner=%v", p.Peer.Node, id(p.Match), p.Next, p.State, p.Inflight, p.Learner))
		}
	case "link":
		s.links.Nodes[NodeID(s.num("node"))] = Link{
			Up: s.has("up"), Incarnation: s.num("inc"), GrantedUntil: Instant(s.num("granted")), GrantEpoch: s.num("ge"),
			PromisedUntil: Instant(s.num("promised")), PromiseEpoch: s.num("pe"),
		}
	case "lease":
		out = append(out, fmt.Sprint(s.e.LeaseValid(s.now)))
	case "flush":
		for _, io := range s.flushes() {
			out = append(out, s.feed(&Flushed{IO: io})...)
		}
	default:
		ev := s.event(words[0])
		if ev == nil {
			return nil, fmt.Errorf("unknown event %q", words[0])
		}
		out = s.feed(ev)
	}
	return out, s.err
}

func (s *script) feed(ev Event) []string {
	s.out = s.e.Handle(s.now, ev, s.out[:0])
	var out []string
	for i := range s.out {
		out = append(out, format(&s.out[i]))
	}
	return out
}

// flushes names the I/Os to complete: all that are pending, or the first n of them.
func (s *script) flushes() []IOID {
	p := s.e.io.pending()
	if n := int(s.num("n")); n > 0 && n < len(p) {
		p = p[:n]
	}
	if len(p) == 0 {
		return nil
	}
	return []IOID{p[len(p)-1].io}
}

func (s *script) boot() {
	s.links = &Links{Nodes: map[NodeID]Link{}}
	cfg := Config{
		ElectionTimeoutMin: 1000, HeartbeatInterval: 100, ClockDriftMax: 50,
		QuiesceAfter: Duration(s.num("quiesce")), LeaseStart: Instant(s.num("lease")), InflightMax: int(s.num("inflight")),
		EntriesPerMessage: int(s.num("batch")), UncommittedBytesMax: int(s.num("bytes")), Links: s.links,
	}
	rec := Recovered{Vote: s.vote("vote"), Applied: s.id("applied"), Purged: s.id("purged"), Committed: s.id("committed"), Runs: s.runs("runs")}
	if s.has("voters") {
		at := rec.Purged
		if s.has("membat") {
			at = s.id("membat")
		}
		rec.Membership = MembershipAt{at, s.membership()}
	}
	if s.has("previous") {
		rec.Previous = MembershipAt{rec.Purged, &Membership{Voters: [][]Peer{s.peers(s.args["previous"])}}}
	}
	s.e = New(cfg.WithDefaults(), peer(int(s.num("self"))), 1, rec)
}

func (s *script) event(kind string) Event {
	from := peer(int(s.num("from")))
	switch kind {
	case "tick":
		return &Tick{}
	case "write":
		k := EntryNormal
		if s.has("barrier") {
			k = EntryBarrier
		}
		return &Write{Token: s.num("token"), Count: int(max(1, s.num("n"))), Bytes: int(s.num("bytes")), Kind: k}
	case "read":
		return &ReadIndex{Token: s.num("token")}
	case "change":
		return &ChangeMembership{Token: s.num("token"), Target: *s.membership()}
	case "transfer":
		return &TransferLeader{Token: s.num("token"), To: peer(int(s.num("to")))}
	case "lead":
		return &Lead{}
	case "campaign":
		return &Campaign{}
	case "resign":
		return &Resign{}
	case "wake":
		return &Wake{}
	case "applied":
		return &Applied{LogID: s.id("id")}
	case "checkpointed":
		return &Checkpointed{LogID: s.id("id"), PurgeBelow: s.num("below")}
	case "peer-up":
		return &PeerUp{Node: NodeID(s.num("node")), Incarnation: s.num("inc")}
	case "peer-down":
		return &PeerDown{Node: NodeID(s.num("node"))}
	case "vote-request":
		return &VoteRequest{From: from, Pre: s.has("pre"), Vote: s.vote("vote"), LastLog: s.id("last"), TransferOf: s.vote("transfer-of")}
	case "vote-response":
		return &VoteResponse{
			From: from, Pre: s.has("pre"), Granted: s.has("granted"), Request: s.vote("request"), Vote: s.vote("vote"), LiveLeader: s.has("live"),
		}
	case "append-request":
		m := &AppendRequest{
			From: from, Vote: s.vote("vote"), Prev: s.id("prev"), Runs: s.runs("runs"), Commit: s.id("commit"), Stream: s.num("stream"),
			Seq: s.num("seq"), SentAt: Instant(s.num("sent")),
		}
		if s.has("voters") {
			m.Memberships = []MembershipAt{{s.id("membat"), s.membership()}}
		}
		return m
	case "append-response":
		return &AppendResponse{
			From: from, Vote: s.vote("vote"), Stream: s.num("stream"), Seq: s.num("seq"), SentAt: Instant(s.num("sent")), Success: s.has("ok"),
			Match: s.id("match"), Hint: s.id("hint"), Uninitialised: s.has("empty"), Waiting: s.has("waiting"), Promise: Duration(s.num("promise")),
		}
	case "heartbeat":
		return &Heartbeat{
			From: from, Vote: s.vote("vote"), Commit: s.id("commit"), Round: s.num("round"), SentAt: Instant(s.num("sent")),
			Quiesce: s.has("quiesce"), Last: s.id("last"), Probe: s.has("probe"), Resigned: s.has("resigned"),
		}
	case "heartbeat-response":
		return &HeartbeatResponse{
			From: from, Vote: s.vote("vote"), Round: s.num("round"), SentAt: Instant(s.num("sent")), Promise: Duration(s.num("promise")),
			Quiesced: s.has("quiesced"), Last: s.id("last"), Behind: s.has("behind"),
		}
	case "timeout-now":
		return &TimeoutNow{From: from, Vote: s.vote("vote")}
	case "snapshot":
		return &SnapshotReceived{Token: s.num("token"), From: from, Vote: s.vote("vote"), Stream: s.num("stream"), Meta: s.meta()}
	case "installed":
		return &SnapshotInstalled{Token: s.num("token"), Meta: s.meta(), Superseded: s.has("superseded")}
	case "snapshot-response":
		return &SnapshotResponse{From: from, Vote: s.vote("vote"), Stream: s.num("stream"), Accepted: s.has("ok"), Match: s.id("match")}
	case "snapshot-failed":
		return &SnapshotFailed{To: peer(int(s.num("to"))), Stream: s.num("stream")}
	case "replicate-failed":
		return &ReplicateFailed{To: peer(int(s.num("to"))), Stream: s.num("stream")}
	}
	return nil
}

func peer(n int) Peer {
	if n == 0 {
		return Peer{}
	}
	return Peer{NodeID(n), ReplicaID(10 + n)}
}

func (s *script) has(k string) bool { _, ok := s.args[k]; return ok }

func (s *script) num(k string) uint64 {
	v, ok := s.args[k]
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		s.err = err
	}
	return n
}

func (s *script) id(k string) LogID {
	var l LogID
	if v, ok := s.args[k]; ok {
		if _, err := fmt.Sscanf(v, "%d.%d", &l.Term, &l.Index); err != nil {
			s.err = err
		}
	}
	return l
}

func (s *script) vote(k string) Vote {
	v, ok := s.args[k]
	if !ok {
		return Vote{}
	}
	var term uint64
	var node int
	if _, err := fmt.Sscanf(strings.TrimSuffix(v, "!"), "%d:%d", &term, &node); err != nil {
		s.err = err
	}
	return Vote{term, peer(node), strings.HasSuffix(v, "!")}
}

// runs are written term.first-last,...
func (s *script) runs(k string) []TermRun {
	var out []TermRun
	if s.args[k] == "" {
		return nil
	}
	for _, w := range strings.Split(s.args[k], ",") {
		var r TermRun
		if _, err := fmt.Sscanf(w, "%d.%d-%d", &r.Term, &r.First, &r.Last); err != nil {
			s.err = err
		}
		out = append(out, r)
	}
	return out
}

// membership is written voters=1,2,3/1,2,4 learners=5.
func (s *script) membership() *Membership {
	m := &Membership{Learners: s.peers(s.args["learners"])}
	for _, v := range strings.Split(s.args["voters"], "/") {
		m.Voters = append(m.Voters, s.peers(v))
	}
	return m
}

func (s *script) peers(v string) []Peer {
	if v == "" {
		return nil
	}
	words := strings.Split(v, ",")
	out := make([]Peer, len(words)) // no room to spare: memory is measured
	for i, w := range words {
		n, err := strconv.Atoi(w)
		if err != nil {
			s.err = err
		}
		out[i] = peer(n)
	}
	return out
}

func (s *script) meta() SnapshotMeta {
	return SnapshotMeta{Last: s.id("last"), Membership: MembershipAt{s.id("membat"), s.membership()}}
}

// --- output ---

func id(l LogID) string { return fmt.Sprintf("%d.%d", l.Term, l.Index) }

func vote(v Vote) string {
	out := fmt.Sprintf("%d:%d", v.Term, v.Peer.Node)
	if v.Committed {
		out += "!"
	}
	return out
}

func memb(m *Membership) string {
	if m == nil {
		return "none"
	}
	set := func(ps []Peer) string {
		var w []string
		for _, p := range ps {
			w = append(w, fmt.Sprint(p.Node))
		}
		return strings.Join(w, ",")
	}
	var v []string
	for _, s := range m.Voters {
		v = append(v, set(s))
	}
	return strings.Join(v, "/") + "+" + set(m.Learners)
}

func (s *script) status() string {
	st := s.e.Status()
	roles := [...]string{"uninitialised", "learner", "follower", "pre-candidate", "candidate", "leader"}
	return fmt.Sprintf("%s vote=%s leader=n%d last=%s flushed=%s committed=%s applied=%s purged=%s membership=%s asleep=%v lease=%d",
		roles[st.Role], vote(st.Vote), st.Leader.Node, id(st.Last), id(st.Flushed), id(st.Committed), id(st.Applied), id(st.Purged),
		memb(st.Membership.Membership), st.Quiesced, st.LeaseUntil)
}

var kindNames = map[CommandKind]string{
	AppendInputEntries: "AppendInputEntries", TruncateLog: "TruncateLog", PurgeLog: "PurgeLog", SaveVote: "SaveVote",
	SaveCommitted: "SaveCommitted", Apply: "Apply", InstallSnapshot: "InstallSnapshot", RejectSnapshot: "RejectSnapshot",
	Replicate: "Replicate", ReplicateCommitted: "ReplicateCommitted", ReplicateSnapshot: "ReplicateSnapshot",
	BroadcastHeartbeat: "BroadcastHeartbeat", SendHeartbeat: "SendHeartbeat", SendVote: "SendVote", SendPreVote: "SendPreVote",
	SendTimeoutNow: "SendTimeoutNow", Respond: "Respond", RebuildReplicationStreams: "RebuildReplicationStreams",
	CloseReplicationStreams: "CloseReplicationStreams", Refuse: "Refuse", ReadReady: "ReadReady", FailPendingReads: "FailPendingReads",
}

// format writes a command with every field that is set.
func format(c *Command) string {
	var b strings.Builder
	b.WriteString(kindNames[c.Kind])
	add := func(set bool, format string, args ...any) {
		if set {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	add(c.To != Peer{}, "to=n%d", c.To.Node)
	add(c.Token != 0, "token=%d", c.Token)
	add(c.Reason != 0, "reason=%d", c.Reason)
	add(c.Kind == AppendInputEntries, "kind=%d", c.Entry)
	add(c.Inbound, "inbound")
	add(c.Vote != Vote{}, "vote=%s", vote(c.Vote))
	add(c.TransferOf != Vote{}, "transfer-of=%s", vote(c.TransferOf))
	add(c.Kind == Replicate, "prev=%s", id(c.Prev))
	add(c.First != 0 || c.Last != 0, "%d..%d", c.First, c.Last)
	add(c.Membership != nil, "membership=%s", memb(c.Membership))
	add(c.LogID != LogID{}, "id=%s", id(c.LogID))
	add(c.Stream != 0, "stream=%d seq=%d", c.Stream, c.Seq)
	add(c.Round != 0, "round=%d", c.Round)
	add(c.SentAt != 0, "sent=%d", c.SentAt)
	add(c.IO != IOID{}, "io=%s/%s", vote(c.IO.Vote), id(c.IO.Last))
	if c.Snapshot != nil {
		add(true, "snapshot=%s membership=%s", id(c.Snapshot.Last), memb(c.Snapshot.Membership.Membership))
	}
	if h := c.Heartbeat; h != nil {
		add(true, "vote=%s commit=%s round=%d sent=%d quiesce=%v last=%s probe=%v resigned=%v", vote(h.Vote), id(h.Commit), h.Round, h.SentAt,
			h.Quiesce, id(h.Last), h.Probe, h.Resigned)
	}
	switch c.Response {
	case RespondVote:
		r := c.VoteResponse
		add(true, "vote{pre=%v granted=%v request=%s vote=%s live=%v}", r.Pre, r.Granted, vote(r.Request), vote(r.Vote), r.LiveLeader)
	case RespondAppend:
		r := c.AppendResponse
		add(true, "append{ok=%v match=%s hint=%s empty=%v vote=%s stream=%d seq=%d sent=%d promise=%d}", r.Success, id(r.Match), id(r.Hint),
			r.Uninitialised, vote(r.Vote), r.Stream, r.Seq, r.SentAt, r.Promise)
	case RespondHeartbeat:
		r := c.HeartbeatResponse
		add(true, "heartbeat{vote=%s round=%d sent=%d promise=%d asleep=%v last=%s behind=%v}", vote(r.Vote), r.Round, r.SentAt, r.Promise,
			r.Quiesced, id(r.Last), r.Behind)
	case RespondSnapshot:
		r := c.SnapshotResponse
		add(true, "snapshot{ok=%v match=%s vote=%s stream=%d}", r.Accepted, id(r.Match), vote(r.Vote), r.Stream)
	}
	return b.String()
}
