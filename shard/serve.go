package shard

import (
	"bytes"
	"math"
	"sort"

	"github.com/kiloraft/kiloraft/store/state"
)

// Need collects what the next entries want to know and the overlays do not hold. One Need becomes one read job.
type Need struct {
	Keys [][]byte // aliases the payloads
	// Ranged: it is the first Limit keys of [Start, End) instead.
	Ranged     bool
	Start, End []byte
	Limit      int
	// valueMax is, for each key, how much of its value matters: one more byte than the longest that it is compared with. A condition that
	// a key exists does not bring a value of megabytes into memory, nor does that another key has such a value.
	valueMax []int
}

// Reset empties the need, keeping its memory.
func (n *Need) Reset() { *n = Need{Keys: n.Keys[:0], valueMax: n.valueMax[:0]} }

// Empty tells whether nothing is needed.
func (n *Need) Empty() bool { return !n.Ranged && len(n.Keys) == 0 }

// Collect adds to need what Apply of payload would want prefetched. It returns false if that does not fit into the same job: a
// delete-range has a job of its own. A lane may collect over several entries in order, and stop at the first false; what
// earlier entries of them write is found in the overlay first, so the job does not become wrong by them.
// A payload that cannot be understood needs nothing: Apply will say so.
func (m *Machine) Collect(payload []byte, need *Need) bool {
	kind, _, body, err := SplitEntry(payload)
	if err != nil || kind != CommandWrite {
		return !need.Ranged
	}
	w := &m.env.write
	if DecodeWrite(body, w) != nil {
		return !need.Ranged
	}
	if len(w.Ops) == 1 && w.Ops[0].Kind == OpDeleteRange {
		if !need.Empty() {
			return false
		}
		o := &w.Ops[0]
		*need = Need{Keys: need.Keys, valueMax: need.valueMax, Ranged: true, Start: o.Key, End: m.rangeEnd(o)}
		// Enough for the limit even if all tombstones of the overlays hide a key of the page each.
		need.Limit = rangeLimit(o) + tombstones(m.live, need) + tombstones(m.frozen, need)
		return true
	}
	if need.Ranged {
		return !w.Conditional()
	}
	for i := range w.Conditions {
		m.collectKey(w.Conditions[i].Key, len(w.Conditions[i].Value)+1, need)
	}
	for i := range w.Ops {
		if w.Ops[i].Kind == OpAdd {
			m.collectKey(w.Ops[i].Key, 0, need)
		}
	}
	return true
}

func (m *Machine) collectKey(key []byte, valueMax int, need *Need) {
	if !m.contains(key) {
		return
	}
	if _, hit := m.get(key); hit == state.Miss {
		need.Keys = append(need.Keys, key)
		need.valueMax = append(need.valueMax, max(valueMax, integerBytesMax+1))
	}
}

// compact sorts the keys and leaves one of each: so much of its value is wanted as the most demanding wants.
func (n *Need) compact() {
	sort.Sort((*byKey)(n))
	last := -1
	for i, key := range n.Keys {
		if last >= 0 && bytes.Equal(n.Keys[last], key) {
			n.valueMax[last] = max(n.valueMax[last], n.valueMax[i])
			continue
		}
		last++
		n.Keys[last], n.valueMax[last] = key, n.valueMax[i]
	}
	n.Keys, n.valueMax = n.Keys[:last+1], n.valueMax[:last+1]
}

type byKey Need

func (b *byKey) Len() int           { return len(b.Keys) }
func (b *byKey) Less(i, j int) bool { return bytes.Compare(b.Keys[i], b.Keys[j]) < 0 }
func (b *byKey) Swap(i, j int) {
	b.Keys[i], b.Keys[j] = b.Keys[j], b.Keys[i]
	b.valueMax[i], b.valueMax[j] = b.valueMax[j], b.valueMax[i]
}

func tombstones(o *state.Overlay, need *Need) (n int) {
	if o == nil {
		return 0
	}
	for it := o.Iter(need.Start, need.End, false); it.Next(); {
		if it.Deleted() {
			n++
		}
	}
	return n
}

// FillNeed makes a read job of a need. The job's keys are the need's, sorted; the need must not be used again.
func (m *Machine) FillNeed(need *Need, job *state.ReadJob) {
	m.FillJob(job)
	job.Keys, job.Start, job.End, job.Limit, job.Bytes, job.Reverse = nil, nil, nil, 0, 0, false
	job.KeysOnly, job.ValueMax = false, nil
	if need.Ranged {
		// Never less than Limit keys, if there are so many, whatever they hold: else Apply would ask again for ever.
		job.Start, job.End, job.Limit = need.Start, need.End, need.Limit
		job.KeysOnly, job.Bytes = true, math.MaxInt
		return
	}
	need.compact()
	job.Keys, job.ValueMax = need.Keys, need.valueMax
}

// CheckWrite tells whether a write may be proposed: it refuses what belongs elsewhere. The caller has validated it.
//
// If only other keys than the first have left, and the write is in a session, it is let through: Apply refuses it and
// remembers that it did (rule Cluster1).
func (m *Machine) CheckWrite(w *Write) error {
	if err := m.checkVersion(w.Version); err != nil {
		return err
	}
	if !m.ownsFirst(w) || w.Session.IsZero() && !m.ownsAll(w) {
		return m.moved(false, m.firstOutside(w))
	}
	return nil
}

// NeedsStamp tells whether w must not be proposed by a leader that stamps nothing (rule State8): a time to live would count from the
// shard's last stamp, which may be long ago, and a session that was begun since then would look as if it came from the future.
func (m *Machine) NeedsStamp(w *Write) bool {
	if !w.Session.IsZero() && w.Session.Issued() > m.time+horizonMs {
		return true
	}
	for i := range w.Ops {
		if w.Ops[i].Expire < 0 {
			return true
		}
	}
	return false
}

func (m *Machine) checkVersion(v uint64) error {
	switch {
	case m.stopped != nil:
		return &UnavailableError{Reason: "this replica cannot go on: see its node's log"}
	case m.mergeRole() == MergeFrozen:
		return errFrozen
	case v > m.desc.Version:
		return &UnavailableError{Reason: "this replica has not applied the newest split or merge yet"}
	}
	return nil
}

// CheckRead tells whether all keys are here. It is called when the read is served, after the wait (rule Engine4).
func (m *Machine) CheckRead(q *Read) error {
	if err := m.checkVersion(q.Version); err != nil {
		return err
	}
	for _, k := range q.Keys {
		if !m.contains(k) {
			return m.moved(false, k)
		}
	}
	return nil
}

// CheckScan tells whether the beginning of the scan is here; its end may be elsewhere.
func (m *Machine) CheckScan(q *Scan) error {
	if err := m.checkVersion(q.Version); err != nil {
		return err
	}
	if !q.Reverse {
		if !m.contains(q.Start) {
			return m.moved(false, q.Start)
		}
		return nil
	}
	// The keys just below End: End in (desc.Start, desc.End].
	d := m.desc
	switch {
	case len(q.End) == 0 && len(d.End) > 0,
		len(q.End) > 0 && bytes.Compare(q.End, d.Start) <= 0,
		len(q.End) > 0 && len(d.End) > 0 && bytes.Compare(q.End, d.End) > 0:
		return m.movedBelow(q.End)
	}
	return nil
}

// movedBelow is moved for the keys just below end; an empty one is plus infinity.
func (m *Machine) movedBelow(end []byte) error {
	e := &MovedError{Descriptors: []Descriptor{*m.desc}}
	left := m.gone()
	for i := len(left) - 1; i >= 0; i-- {
		if d := left[i]; len(end) == 0 || bytes.Compare(d.Start, end) < 0 {
			e.Descriptors = append(e.Descriptors, *d)
			break
		}
	}
	return e
}

// Fits tells whether the range that a scan's job has read is still this shard's: a split may have come in between.
func (m *Machine) Fits(job *state.ReadJob) bool { return m.desc.ContainsRange(job.Start, job.End) }

// Get looks a key up in the overlays. Miss means that the store must be asked; an expired item is Deleted. The value aliases
// the overlay and is valid until the next Apply.
func (m *Machine) Get(key []byte) (state.Item, state.Hit) {
	it, hit := m.get(key)
	if hit == state.Found && expired(it.Expire, m.time) {
		return state.Item{}, state.Deleted
	}
	return it, hit
}

// Visible tells whether an item that the store returned exists as of the shard's time (rule State8).
func (m *Machine) Visible(it *state.Item) bool { return !expired(it.Expire, m.time) }

// Due tells whether an item that is still visible has expired by the leader's own clock: it proposes a time entry and answers
// after that is applied (rule State8).
func (m *Machine) Due(expire, clockMs int64) bool { return expire > m.time && expire <= clockMs }

// FillScan makes the read job of a scan, trimmed to this shard.
func (m *Machine) FillScan(q *Scan, job *state.ReadJob) {
	m.FillJob(job)
	job.Keys, job.Limit, job.Bytes, job.Reverse = nil, q.Limit, q.BytesMax, q.Reverse
	job.Start, job.End = q.Start, q.End
	if bytes.Compare(job.Start, m.desc.Start) < 0 {
		job.Start = m.desc.Start
	}
	if len(m.desc.End) > 0 && (len(job.End) == 0 || bytes.Compare(job.End, m.desc.End) > 0) {
		job.End = m.desc.End
	}
}

// FinishScan appends the encoded Page to b from a job that has come back, merged with the overlays: the shard's content as of
// now. It returns due if an item has expired by the leader's clock (clockMs; 0 for a stale read): see Due.
// The job must be Valid, and CheckScan must hold.
func (m *Machine) FinishScan(q *Scan, job *state.ReadJob, clockMs int64, b []byte) (out []byte, due bool) {
	page := &m.env.page
	state.MergePage(page, &job.Page, state.MergeOptions{Start: job.Start, End: job.End, Limit: q.Limit, Bytes: q.BytesMax,
		Reverse: q.Reverse, Now: m.time}, m.live, m.frozen)
	p := &m.env.out
	*p = Page{Entries: p.Entries[:0]}
	for i := range page.Items {
		it := &page.Items[i]
		if m.Due(it.Expire, clockMs) {
			return b, true
		}
		e := Entry{Key: it.Key, Version: it.Version, Expire: it.Expire}
		if !q.KeysOnly {
			e.Value = it.Value
		}
		p.Entries = append(p.Entries, e)
	}
	switch {
	case page.More:
		p.CompleteTo = page.CompleteTo
	case q.Reverse:
		p.Done = bytes.Compare(q.Start, m.desc.Start) >= 0
		p.CompleteTo = m.desc.Start
	default:
		p.Done = m.desc.ContainsRange(q.Start, q.End)
		p.CompleteTo = m.desc.End
	}
	if p.Done {
		p.CompleteTo = nil
	}
	return AppendPage(b, p), false
}
