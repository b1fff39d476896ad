package router

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/shard"
)

// sessions gives writes their names. It holds one open session; older ones live on in the calls that still use them.
type sessions struct {
	mu      sync.Mutex
	current *session
	now     func() time.Time
	rand    func() uint64
	offset  time.Duration // of the shards' time from this clock, as learnt from a refusal
}

// session is one sequence of writes. It is guarded by sessions.mu.
type session struct {
	id     shard.SessionID
	opened time.Time
	next   uint64
	lowest uint64 // every sequence below is answered
	// answered has a bit for each sequence in [lowest, lowest+window), at its value modulo the window.
	answered [shard.SessionWindow / 64]uint64
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, rand: rand.Uint64}
}

// begin gives a write its place: in the open session, or in a new one if that is half way to the horizon or its window is full
// (rule Cluster2).
func (s *sessions) begin() (*session, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	c := s.current
	if c == nil || now.Sub(c.opened) >= shard.SessionHorizon/2 || c.next-c.lowest >= shard.SessionWindow {
		c = &session{id: shard.NewSessionID(now.Add(s.offset).UnixMilli(), s.rand()), opened: now, next: 1, lowest: 1}
		s.current = c
	}
	seq := c.next
	c.next++
	return c, seq
}

// lowest returns the lowest sequence of c that is not answered.
func (s *sessions) lowest(c *session) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.lowest
}

// end says that seq is answered, or was given up: it is never sent again.
func (s *sessions) end(c *session, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	bit := func(seq uint64) (*uint64, uint64) {
		i := seq % shard.SessionWindow
		return &c.answered[i/64], 1 << (i % 64)
	}
	word, mask := bit(seq)
	*word |= mask
	for c.lowest < c.next {
		word, mask := bit(c.lowest)
		if *word&mask == 0 {
			return
		}
		*word &^= mask
		c.lowest++
	}
}

// expired says that a shard refused c. shardTime, if it is not 0, is by what time the next one must be issued.
func (s *sessions) expired(c *session, shardTime int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if shardTime > 0 {
		s.offset = 0
		// Only a clock that is far off matters; else shards that are a little apart would make it jump.
		if d := time.UnixMilli(shardTime).Sub(s.now()); d > shard.SessionHorizon/4 || d < -shard.SessionHorizon/4 {
			s.offset = d
		}
	}
	if s.current == c {
		s.current = nil
	}
}
