package engine

import "testing"

// three is a leader and two followers in memory: every message and completion reaches its engine at once, and no disk and no codec is in it.
type three struct {
	leader    *Engine
	followers [2]*member
	out       []Command
	write     Write
	answers   []AppendResponse
	done      member // of the leader
}

// member is an engine with its reusable completions and messages.
type member struct {
	e       *Engine
	out     []Command
	req     AppendRequest
	runs    [1]TermRun
	flushed Flushed
	applied Applied
}

func newThree(t testing.TB) *three {
	t.Helper()
	s := &script{}
	lead(t, s)
	c := &three{leader: s.e, done: member{e: s.e}}
	for i := range c.followers {
		f := &script{}
		for _, line := range []string{"new self=" + string(rune('2'+i)) + " voters=1,2,3 applied=1.1 purged=1.1 quiesce=500", "tick at=11002"} {
			if _, err := f.step(line); err != nil {
				t.Fatal(err)
			}
		}
		m := &member{e: f.e}
		m.req = AppendRequest{From: peer(1), Vote: s.e.vote, Prev: LogID{1, 1}, Stream: uint64(i + 1), Seq: 1, SentAt: 11003}
		m.runs[0] = TermRun{1, 2, 2} // the blank entry of the leader's term
		c.answers = m.append(11003, c.answers[:0])
		if len(c.answers) != 1 || !c.answers[0].Success {
			t.Fatalf("follower %d: %+v", i+2, c.answers)
		}
		c.followers[i] = m
	}
	return c
}

// append hands the request in m.req to the follower, makes what it writes durable, applies, and adds what it answers.
func (m *member) append(now Instant, answers []AppendResponse) []AppendResponse {
	m.req.Runs = m.runs[:]
	m.out = m.e.Handle(now, &m.req, m.out[:0])
	for i := 0; i < len(m.out); i++ { // grows
		switch c := &m.out[i]; {
		case c.Kind == AppendInputEntries:
			m.flushed.IO = c.IO
			m.out = m.e.Handle(now, &m.flushed, m.out)
		case c.Kind == SaveVote:
			m.flushed.IO = c.IO
			m.out = m.e.Handle(now, &m.flushed, m.out)
		case c.Kind == Apply:
			m.applied.LogID = LogID{m.req.Vote.Term, c.Last}
			m.out = m.e.Handle(now, &m.applied, m.out)
		case c.Kind == Respond && c.Response == RespondAppend:
			answers = append(answers, c.AppendResponse)
		}
	}
	return answers
}

// run is one write of count entries, from proposal to apply on the leader; followers learn the commit with the next.
func (c *three) run(count int) {
	now := c.leader.now
	c.write = Write{Token: 1, Count: count, Bytes: 100 * count}
	c.out = c.leader.Handle(now, &c.write, c.out[:0])
	c.answers = c.answers[:0]
	for i := range c.out {
		switch cmd := &c.out[i]; cmd.Kind {
		case AppendInputEntries:
			c.done.flushed.IO = cmd.IO
		case Replicate:
			m := c.followers[cmd.To.Node-2]
			m.req = AppendRequest{From: peer(1), Vote: cmd.Vote, Prev: cmd.Prev, Commit: cmd.LogID, Stream: cmd.Stream, Seq: cmd.Seq, SentAt: cmd.SentAt}
			m.runs[0] = TermRun{cmd.Vote.Term, cmd.First, cmd.Last}
			c.answers = m.append(now, c.answers)
		}
	}
	c.out = c.leader.Handle(now, &c.done.flushed, c.out[:0])
	for i := range c.answers {
		c.out = c.leader.Handle(now, &c.answers[i], c.out)
	}
	c.done.applied.LogID = c.done.flushed.IO.Last
	c.out = c.leader.Handle(now, &c.done.applied, c.out)
}

func TestThreeAllocateNothing(t *testing.T) {
	c := newThree(t)
	for range 100 {
		c.run(64)
	}
	before := c.leader.applied.Index
	if n := testing.AllocsPerRun(1000, func() { c.run(64) }); n != 0 {
		t.Fatalf("%v allocations per write", n)
	}
	last := before + 64*1001
	if c.leader.applied.Index != last {
		t.Fatal("the leader does not commit", c.leader.Status())
	}
	for _, m := range c.followers {
		if m.e.applied.Index != last-64 { // all but what the next write will commit
			t.Fatal("a follower does not follow", m.e.Status())
		}
	}
}

// BenchmarkThree is the engine alone: three replicas in memory, per write of so many entries.
func BenchmarkThree(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(map[int]string{1: "single", 64: "batch64"}[n], func(b *testing.B) {
			c := newThree(b)
			b.ReportAllocs()
			for b.Loop() {
				c.run(n)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/entry")
		})
	}
}
