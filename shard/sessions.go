package shard

import (
	"bytes"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/internal/mp"
)

// sessions is the de-duplication table (rules Cluster1 and Cluster2). It is a function of the applied entries alone.
//
// A row is found by session and sequence. A session's rows below its lowest unanswered sequence are gone: such a
// sequence is never sent again, so what still arrives with one is a stray copy and is refused. A session that is not in the
// table and is at or below floor, or older than the horizon, may have been forgotten and is refused.
type sessions struct {
	list  []*session // sorted by id, which is by age
	rows  int        // of all sessions
	floor SessionID  // sessions up to it were forgotten for lack of room
	spare *session   // one for reuse
}

type session struct {
	id     SessionID
	lowest uint64
	// shared: the tables of several shards hold it since a split, maybe in several lanes. It is replaced by a copy instead of changed. It has no
	// rows.
	shared bool
	rows   []row // sorted by seq, all >= lowest
	// buf is what rows is a piece of, nil until a row was recorded: rows moves towards its end as the oldest are forgotten, and back when it
	// is there, so that a write moves no other rows.
	buf []row
}

// row remembers one write: enough to recognize it, to assign it to a shard (prefix), and to answer it.
type row struct {
	seq         uint64
	fingerprint uint64
	version     uint64
	value       int64    // the only value, if values is 1
	more        *[]int64 // the values, if there are several
	prefix      [prefixBytes]byte
	values      uint16
	failed      uint16
	outcome     Outcome
	hasMore     bool // Result.More
}

// prefixBytes is how much of a write's first key a row keeps (rule Cluster1).
const prefixBytes = 16

func prefixOf(key []byte) (p [prefixBytes]byte) {
	copy(p[:], key)
	return p
}

const horizonMs = int64(SessionHorizon / time.Millisecond)

// verdict is what the table says about a write before it is applied.
type verdict uint8

const (
	verdictNew     verdict = iota // apply it
	verdictReplay                 // it was applied: answer from the row
	verdictExpired                // refuse it
	verdictReused                 // refuse it: same sequence, other write
)

func (t *sessions) find(id SessionID) (int, bool) {
	// The newest sessions are the busiest: look at the end first.
	if n := len(t.list); n > 0 && t.list[n-1].id == id {
		return n - 1, true
	}
	return slices.BinarySearchFunc(t.list, id, func(s *session, id SessionID) int { return bytes.Compare(s.id[:], id[:]) })
}

// check looks a write up without changing anything. now is the shard's time, the write's own stamp included.
func (t *sessions) check(w *Write, now int64) (verdict, *row) {
	if w.Seq < w.Lowest || w.Seq-w.Lowest >= SessionWindow || !t.alive(w.Session, now) {
		return verdictExpired, nil
	}
	i, ok := t.find(w.Session)
	if !ok {
		if bytes.Compare(w.Session[:], t.floor[:]) <= 0 {
			return verdictExpired, nil
		}
		return verdictNew, nil
	}
	s := t.list[i]
	if w.Seq < s.lowest {
		return verdictExpired, nil
	}
	if j, ok := s.find(w.Seq); ok {
		if s.rows[j].fingerprint != w.Fingerprint || s.rows[j].prefix != prefixOf(w.FirstKey()) {
			return verdictReused, nil
		}
		return verdictReplay, &s.rows[j]
	}
	return verdictNew, nil
}

// alive tells whether an id is within the horizon. One from the future by more than it would never be forgotten.
func (t *sessions) alive(id SessionID, now int64) bool {
	issued := id.Issued()
	return issued >= now-horizonMs && issued <= now+horizonMs
}

func (s *session) find(seq uint64) (int, bool) {
	n := len(s.rows)
	if n == 0 || s.rows[n-1].seq < seq { // sequences grow
		return n, false
	}
	lo, hi := 0, n
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if s.rows[m].seq < seq {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo, s.rows[lo].seq == seq
}

// record adds the row of a write that check called new, and forgets what its Lowest allows.
func (t *sessions) record(w *Write, res *Result) {
	i, ok := t.find(w.Session)
	if !ok {
		t.list = slices.Insert(t.list, i, t.newSession(w.Session))
	}
	s := t.own(i)
	t.advance(s, w.Lowest)
	j, _ := s.find(w.Seq)
	s.makeRoom()
	s.rows = slices.Insert(s.rows, j, rowOf(w, res))
	t.rows++
	for (len(t.list) > SessionsMax || t.rows > SessionRowsMax) && t.evictOldest(s) {
	}
}

// own returns session i to be changed.
func (t *sessions) own(i int) *session {
	if s := t.list[i]; s.shared {
		t.list[i] = &session{id: s.id, lowest: s.lowest}
	}
	return t.list[i]
}

// makeRoom lets rows take one more.
func (s *session) makeRoom() {
	switch n := len(s.rows); {
	case n < cap(s.rows):
	case cap(s.buf)-cap(s.rows) >= max(n, 1): // so much is free before them
		s.rows = append(s.buf[:0], s.rows...)
		clear(s.buf[cap(s.buf)-n : cap(s.buf)])
	default:
		s.rows = slices.Grow(s.rows, 1)
		s.buf = s.rows[:0]
	}
}

func (t *sessions) newSession(id SessionID) *session {
	s := t.spare
	if s == nil {
		return &session{id: id}
	}
	t.spare = nil
	*s = session{id: id, rows: s.buf[:0], buf: s.buf}
	return s
}

// advance forgets the rows of s below lowest.
func (t *sessions) advance(s *session, lowest uint64) {
	if lowest <= s.lowest {
		return
	}
	s.lowest = lowest
	n, _ := s.find(lowest)
	clear(s.rows[:n])
	s.rows = s.rows[n:]
	t.rows -= n
}

// evictOldest forgets the oldest session that is not keep, and moves the floor up to it.
func (t *sessions) evictOldest(keep *session) bool {
	for i, s := range t.list {
		if s == keep {
			continue
		}
		if bytes.Compare(s.id[:], t.floor[:]) > 0 {
			t.floor = s.id
		}
		t.remove(i, i+1)
		return true
	}
	return false
}

// expire forgets the sessions that are older than the horizon at this shard time. No floor is needed: alive refuses them.
func (t *sessions) expire(now int64) {
	n := 0
	for n < len(t.list) && !t.alive(t.list[n].id, now) {
		n++
	}
	if n > 0 {
		t.remove(0, n)
	}
	if len(t.list) == 0 {
		t.list, t.spare = nil, nil // an idle shard holds no table
	}
}

func (t *sessions) remove(from, to int) {
	for _, s := range t.list[from:to] {
		t.rows -= len(s.rows)
		if cap(s.buf) <= 64 && !s.shared {
			clear(s.buf[:cap(s.buf)])
			t.spare = s
		}
	}
	t.list = slices.Delete(t.list, from, to)
}

// oldest returns when the oldest session was issued.
func (t *sessions) oldest() (issuedMs int64, ok bool) {
	if len(t.list) == 0 {
		return 0, false
	}
	return t.list[0].id.Issued(), true
}

func rowOf(w *Write, res *Result) row {
	r := row{seq: w.Seq, fingerprint: w.Fingerprint, prefix: prefixOf(w.FirstKey()), outcome: res.Outcome, version: res.Version,
		failed: uint16(res.Failed), hasMore: res.More, values: uint16(len(res.Values))}
	switch len(res.Values) {
	case 0:
	case 1:
		r.value = res.Values[0]
	default:
		more := slices.Clone(res.Values)
		r.more = &more
	}
	return r
}

// result fills res with the answer that the row remembers.
func (r *row) result(res *Result) {
	res.Reset()
	res.Outcome, res.Version, res.Failed, res.More, res.Replayed = r.outcome, r.version, int(r.failed), r.hasMore, true
	switch {
	case r.more != nil:
		res.Values = append(res.Values, *r.more...)
	case r.values == 1:
		res.Values = append(res.Values, r.value)
	}
}

// appendSessions appends [floor, [session …]] with session = [id, lowest, [row …]], in order of id and sequence.
func appendSessions(b []byte, t *sessions) []byte {
	b = mp.AppendArray(b, 2)
	if t.floor.IsZero() {
		b = mp.AppendBin(b, nil)
	} else {
		b = mp.AppendBin(b, t.floor[:])
	}
	b = mp.AppendArray(b, len(t.list))
	for _, s := range t.list {
		b = appendSession(b, s)
	}
	return b
}

func appendSession(b []byte, s *session) []byte {
	b = mp.AppendBin(mp.AppendArray(b, 3), s.id[:])
	b = mp.AppendUint(b, s.lowest)
	b = mp.AppendArray(b, len(s.rows))
	for i := range s.rows {
		b = appendRow(b, &s.rows[i])
	}
	return b
}

// appendRow appends [seq, fingerprint, prefix, outcome, version, failed, more, value …].
func appendRow(b []byte, r *row) []byte {
	b = mp.AppendArray(b, 7+int(r.values))
	b = mp.AppendUint(mp.AppendUint(b, r.seq), r.fingerprint)
	b = mp.AppendUint(mp.AppendBin(b, r.prefix[:]), uint64(r.outcome))
	b = mp.AppendUint(mp.AppendUint(b, r.version), uint64(r.failed))
	b = mp.AppendBool(b, r.hasMore)
	switch {
	case r.more != nil:
		for _, v := range *r.more {
			b = mp.AppendInt(b, v)
		}
	case r.values == 1:
		b = mp.AppendInt(b, r.value)
	}
	return b
}

func readSessions(r *mp.Reader) (t sessions) {
	r.ArrayOf(2)
	t.floor = readSessionID(r)
	n := boundedArray(r, SessionsMax)
	for ; n > 0 && r.Err() == nil; n-- {
		r.ArrayOf(3)
		s := &session{id: readSessionID(r), lowest: r.Uint()}
		rows := boundedArray(r, SessionWindow)
		if rows > 0 {
			s.rows = make([]row, 0, rows)
		}
		for ; rows > 0 && r.Err() == nil; rows-- {
			s.rows = append(s.rows, readRow(r))
		}
		t.list = append(t.list, s)
		t.rows += len(s.rows)
	}
	return t
}

func readRow(r *mp.Reader) row {
	n := r.Array()
	if n < 7 || n > 7+WriteAddsMax {
		r.Fail("row of the de-duplication table")
		return row{}
	}
	w := row{seq: r.Uint(), fingerprint: r.Uint()}
	if p := r.Bin(); len(p) == prefixBytes {
		copy(w.prefix[:], p)
	} else {
		r.Fail("prefix of a row")
	}
	w.outcome, w.version, w.failed = Outcome(readKind(r)), r.Uint(), uint16(r.Uint())
	w.hasMore = r.Bool()
	w.values = uint16(n - 7)
	switch {
	case w.values == 1:
		w.value = r.Int()
	case w.values > 1:
		more := make([]int64, w.values)
		for i := range more {
			more[i] = r.Int()
		}
		w.more = &more
	}
	return w
}
