package shard

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/store/state"
)

// A merge of the left shard L with its right neighbour R (rules Merge1 to Merge4):
//
//	L: idle ── PrepareMerge ──► preparing ── Merge ────────────────────► idle, with R's keys
//	                               └──────── AbortMerge ──► aborting ── EndMerge ──► idle
//	R: idle ── Freeze ──► frozen ── Merge in L ──► gone
//	                         └───── Unfreeze ──► idle
//
// Each entry names the exact versions of its shard, and all but Freeze and EndMerge raise Version, so the first one that is
// applied decides and the others are void.

// MergeStep is the body of the merge commands. Which fields count depends on the command; the others are zero.
type MergeStep struct {
	// Version and ConfVersion of the shard in whose log the entry is.
	Version     uint64
	ConfVersion uint64
	// Other is the other shard of the merge, with its versions (PrepareMerge, Merge: those of R, at which it is frozen).
	Other            engine.ShardID
	OtherVersion     uint64
	OtherConfVersion uint64
	// Freeze is where R was frozen, in R's log (Merge).
	Freeze engine.LogID
}

// AppendMergeEntry appends the payload of a merge command: kind, stamp and [version, confVersion, other, otherVersion,
// otherConfVersion, freezeTerm, freezeIndex].
func AppendMergeEntry(b []byte, kind CommandKind, stampMs int64, s *MergeStep) []byte {
	b = mp.AppendUint(mp.AppendUint(mp.AppendArray(appendEntryHeader(b, kind, stampMs), 7), s.Version), s.ConfVersion)
	b = mp.AppendUint(mp.AppendUint(mp.AppendUint(b, uint64(s.Other)), s.OtherVersion), s.OtherConfVersion)
	return mp.AppendUint(mp.AppendUint(b, s.Freeze.Term), s.Freeze.Index)
}

func decodeMergeStep(b []byte) (s MergeStep, err error) {
	r := mp.NewReader(b)
	r.ArrayOf(7)
	s = MergeStep{Version: r.Uint(), ConfVersion: r.Uint(), Other: engine.ShardID(r.Uint()), OtherVersion: r.Uint(), OtherConfVersion: r.Uint(),
		Freeze: engine.LogID{Term: r.Uint(), Index: r.Uint()}}
	return s, r.Finish()
}

// MergeRole is the part that a shard has in a merge. Stored: never renumber.
type MergeRole uint8

// The roles.
const (
	MergeNone      MergeRole = iota
	MergePreparing           // L, from PrepareMerge on
	MergeAborting            // L, from AbortMerge until R has taken Unfreeze
	MergeFrozen              // R
)

// MergeState is what a shard remembers of the merge that it is in.
type MergeState struct {
	Role             MergeRole
	Other            engine.ShardID
	OtherVersion     uint64
	OtherConfVersion uint64
	Freeze           engine.LogID // MergeFrozen: the entry that froze it
}

func appendMergeState(b []byte, s *MergeState) []byte {
	b = mp.AppendUint(mp.AppendUint(mp.AppendArray(b, 6), uint64(s.Role)), uint64(s.Other))
	b = mp.AppendUint(mp.AppendUint(b, s.OtherVersion), s.OtherConfVersion)
	return mp.AppendUint(mp.AppendUint(b, s.Freeze.Term), s.Freeze.Index)
}

func readMergeState(r *mp.Reader) (s MergeState) {
	r.ArrayOf(6)
	s.Role = MergeRole(readKind(r))
	s.Other, s.OtherVersion, s.OtherConfVersion = engine.ShardID(r.Uint()), r.Uint(), r.Uint()
	s.Freeze = engine.LogID{Term: r.Uint(), Index: r.Uint()}
	if s.Role == MergeNone || s.Role > MergeFrozen {
		r.Fail("role in a merge")
	}
	return s
}

// Merge returns what part the shard has in a merge.
func (m *Machine) Merge() MergeState {
	if m.merge == nil {
		return MergeState{}
	}
	return *m.merge
}

func (m *Machine) mergeRole() MergeRole {
	if m.merge == nil {
		return MergeNone
	}
	return m.merge.Role
}

func (m *Machine) setMerge(s MergeState) {
	if m.merge = nil; s.Role != MergeNone {
		m.merge = &s
	}
}

// errFrozen answers whoever comes for the keys of a frozen shard.
var errFrozen = &UnavailableError{RetryAfter: mergeRetry, Reason: "the shard is being merged"}

// CheckMerge tells why the step would be void if it were applied now; nil if it would not.
func (m *Machine) CheckMerge(kind CommandKind, s *MergeStep) error {
	if m.key.Shard == MetaShardID || s.Other <= MetaShardID || s.Other == m.key.Shard {
		return invalid("shard %d does not merge with %d", m.key.Shard, s.Other)
	}
	void := &VoidError{What: fmt.Sprintf("merge step %d of version %d.%d", kind, s.Version, s.ConfVersion), Now: *m.desc}
	if s.Version != m.desc.Version || s.ConfVersion != m.desc.ConfVersion {
		return void
	}
	ok, now := false, m.Merge()
	switch kind {
	case CommandPrepareMerge, CommandFreeze:
		ok = now.Role == MergeNone && !m.joint()
	case CommandUnfreeze:
		// Also if it is not frozen (yet): a Freeze that comes later is void then.
		ok = now.Role == MergeNone || now.Role == MergeFrozen && now.Other == s.Other
	case CommandMerge:
		ok = now.Role == MergePreparing && now.Other == s.Other && now.OtherVersion == s.OtherVersion &&
			now.OtherConfVersion == s.OtherConfVersion
	case CommandAbortMerge:
		ok = now.Role == MergePreparing && now.Other == s.Other
	case CommandEndMerge:
		ok = now.Role == MergeAborting && now.Other == s.Other
	}
	if !ok {
		return void
	}
	return nil
}

func (m *Machine) joint() bool {
	for _, r := range m.desc.Replicas {
		if r.Role != RoleVoter && r.Role != RoleLearner {
			return true
		}
	}
	return false
}

// mergeStep decodes the payload of a merge entry.
func (m *Machine) mergeStep(id engine.LogID, payload []byte) (kind CommandKind, stamp int64, s MergeStep, err error) {
	if err := m.next(id); err != nil {
		return 0, 0, s, err
	}
	kind, stamp, body, err := SplitEntry(payload)
	if err == nil && (kind < CommandPrepareMerge || kind > CommandEndMerge) {
		err = fmt.Errorf("%w: command %d is no merge step", ErrUnknownCommand, kind)
	}
	if err == nil {
		if s, err = decodeMergeStep(body); err != nil {
			err = fmt.Errorf("%w: %w", ErrUnknownCommand, err)
		}
	}
	if err != nil {
		return 0, 0, s, m.stop(id, err)
	}
	return kind, stamp, s, nil
}

// ApplyMergeStep applies a merge entry. A Merge that is not void is left to Absorb: then needs is what it names, and nothing was
// changed. A void step has no effect, and ans.Refused says why.
func (m *Machine) ApplyMergeStep(id engine.LogID, payload []byte, ans *Answer) (needs *MergeStep, err error) {
	kind, stamp, s, err := m.mergeStep(id, payload)
	if err != nil {
		return nil, err
	}
	void := m.CheckMerge(kind, &s)
	if void == nil && kind == CommandMerge {
		return &s, nil
	}
	ans.Reset()
	m.applied = id
	if m.mergeRole() != MergeFrozen {
		m.passTime(stamp)
	}
	if void != nil {
		ans.Refused = void
		return nil, nil
	}
	raise := true
	switch kind {
	case CommandPrepareMerge:
		m.setMerge(MergeState{Role: MergePreparing, Other: s.Other, OtherVersion: s.OtherVersion, OtherConfVersion: s.OtherConfVersion})
	case CommandFreeze:
		m.setMerge(MergeState{Role: MergeFrozen, Other: s.Other, Freeze: id})
		raise = false
	case CommandUnfreeze:
		m.merge = nil
	case CommandAbortMerge:
		now := m.Merge()
		now.Role = MergeAborting
		m.setMerge(now)
	case CommandEndMerge:
		m.merge, raise = nil, false
	}
	if raise {
		d := *m.desc
		d.Version++
		m.setDesc(&d)
	}
	return nil, nil
}

// Absorption is a Merge that was decided and is not durable yet. Changes are written in one transaction: L with its overlay, and the
// tombstone of R with R's.
type Absorption struct {
	Changes []state.Change
	// Right is R's last descriptor.
	Right *Descriptor
	next  Machine
}

// Absorb prepares the Merge entry id, for which ApplyMergeStep has returned its needs. right is a cut of the local replica of R at
// or behind its Freeze. Nothing but the overlay is touched, which is frozen, until the changes are durable: then call Absorbed.
func (m *Machine) Absorb(id engine.LogID, payload []byte, right *state.Change) (*Absorption, error) {
	_, stamp, s, err := m.mergeStep(id, payload)
	if err != nil {
		return nil, err
	}
	r, err := Open(nil, &right.Record)
	if err != nil {
		return nil, err
	}
	if f := r.Merge(); f.Role != MergeFrozen || f.Other != m.key.Shard || f.Freeze != s.Freeze || !bytes.Equal(r.desc.Start, m.desc.End) ||
		len(m.desc.End) == 0 || r.desc.Version != s.OtherVersion {
		return nil, m.stop(id, fmt.Errorf("%w: merge with %v, which is %+v", ErrBadRecord, r.desc, f))
	}
	if m.freezing {
		panic("shard: merge of a machine that is frozen")
	}
	m.freezing = true
	m.frozen, m.live = m.live, nil
	if m.frozen != nil {
		m.frozen.Freeze()
	}
	n := *m
	d := *m.desc
	d.Version, d.End = max(m.desc.Version, r.desc.Version)+1, r.desc.End
	n.setDesc(&d)
	n.applied, n.merge = id, nil
	n.counter = max(m.counter, r.counter)
	n.sessions = uniteSessions(&m.sessions, &r.sessions)
	n.estimate = m.estimate.clone()
	n.estimate.unite(&r.estimate)
	n.extents = joinExtents(m.extents, r.extents)
	n.time = max(m.time, r.time)
	n.passTime(stamp)
	n.sessions.expire(n.time)
	n.setGone(slices.DeleteFunc(slices.Clone(m.gone()), func(o *Descriptor) bool { return d.Contains(o.Start) }))
	return &Absorption{Right: r.desc, next: n, Changes: []state.Change{
		{Record: n.Record(), Overlay: m.frozen},
		{Record: TombstoneRecord(r.key, r.applied), Overlay: right.Overlay},
	}}, nil
}

// Absorbed applies the Merge, whose changes are durable.
func (m *Machine) Absorbed(a *Absorption, ans *Answer) {
	ans.Reset()
	if m.frozen != nil && !m.shared {
		m.frozen.Release()
	}
	*m = a.next
	m.persisted, m.base = m.applied, nil
	m.live, m.frozen, m.freezing, m.shared, m.borrowed = nil, nil, false, false, false
}

// joinExtents concatenates the extents of neighbours. Two that touch in the same tablet become one: a split that was undone.
func joinExtents(l, r []state.Extent) []state.Extent {
	out := slices.Clone(l)
	for _, e := range r {
		if n := len(out) - 1; n >= 0 && out[n].Tablet == e.Tablet && len(out[n].End) > 0 && bytes.Equal(out[n].End, e.Start) {
			out[n].End = e.End
			continue
		}
		out = append(out, e)
	}
	return out
}

// uniteSessions merges the tables of neighbours. A session that one of them may have forgotten for lack of room is forgotten by both:
// its retries are refused, not applied again.
func uniteSessions(l, r *sessions) sessions {
	out := sessions{floor: l.floor}
	if bytes.Compare(r.floor[:], out.floor[:]) > 0 {
		out.floor = r.floor
	}
	i, j := 0, 0
	for i < len(l.list) || j < len(r.list) {
		var s *session
		c := 0
		switch {
		case i == len(l.list):
			c = 1
		case j == len(r.list):
			c = -1
		default:
			c = bytes.Compare(l.list[i].id[:], r.list[j].id[:])
		}
		switch {
		case c == 0:
			s = uniteSession(l.list[i], r.list[j])
			i, j = i+1, j+1
		case c < 0:
			if s = l.list[i]; bytes.Compare(s.id[:], r.floor[:]) <= 0 {
				s = nil
			}
			i++
		default:
			if s = r.list[j]; bytes.Compare(s.id[:], l.floor[:]) <= 0 {
				s = nil
			}
			j++
		}
		if s != nil {
			c := &session{id: s.id, lowest: s.lowest, rows: slices.Clone(s.rows)}
			out.list = append(out.list, c)
			out.rows += len(c.rows)
		}
	}
	for (len(out.list) > SessionsMax || out.rows > SessionRowsMax) && out.evictOldest(nil) {
	}
	return out
}

// uniteSession merges the rows of one session. A row that both have is that of one write: it was given to both by a split, or one of
// them has refused it.
func uniteSession(a, b *session) *session {
	s := &session{id: a.id, lowest: max(a.lowest, b.lowest)}
	rows := slices.Concat(a.rows, b.rows)
	slices.SortStableFunc(rows, func(x, y row) int {
		switch {
		case x.seq < y.seq:
			return -1
		case x.seq > y.seq:
			return 1
		}
		return 0
	})
	for _, r := range rows {
		if n := len(s.rows) - 1; n >= 0 && s.rows[n].seq == r.seq {
			if s.rows[n].outcome == OutcomeMoved {
				s.rows[n] = r
			}
			continue
		}
		if r.seq >= s.lowest {
			s.rows = append(s.rows, r)
		}
	}
	return s
}

func (e *estimate) unite(o *estimate) {
	e.live, e.puts, e.bytes = e.live+o.live, e.puts+o.puts, e.bytes+o.bytes
	if o.sketch == nil {
		return
	}
	if e.sketch == nil {
		e.sketch = new([sketchSize]uint8)
	}
	for i, r := range o.sketch {
		e.sketch[i] = max(e.sketch[i], r)
	}
}
