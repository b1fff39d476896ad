package shard

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/state"
)

// Answer is what applying a write answers to whoever waits for it.
type Answer struct {
	Result
	// Refused, if set, is the answer instead: the entry had no effect. It is one of this package's errors.
	Refused error
}

// Reset empties the answer, keeping its memory.
func (a *Answer) Reset() {
	a.Result.Reset()
	a.Refused = nil
}

// lookup is the value of a key that an entry needs.
type lookup struct {
	item  state.Item
	found bool
}

// Apply applies the normal entry id. It changes everything or nothing.
//
// Its errors: ErrCold if a value is missing that neither the overlays nor prefetched hold: nothing was changed, read and call
// again. Anything else: the replica must stop here, for good; Stopped remembers it.
// prefetched may be nil; it is ignored unless it is Valid.
func (m *Machine) Apply(id engine.LogID, payload []byte, prefetched *state.ReadJob, ans *Answer) error {
	if err := m.next(id); err != nil {
		return err
	}
	kind, stamp, body, err := SplitEntry(payload)
	if err == nil && kind == CommandTime && len(body) > 0 {
		err = fmt.Errorf("%w: time entry of %d bytes", ErrUnknownCommand, len(payload))
	}
	w := &m.env.write
	if err == nil && kind == CommandWrite {
		if derr := DecodeWrite(body, w); derr != nil {
			err = fmt.Errorf("%w: %w", ErrUnknownCommand, derr)
		}
	}
	if err == nil && kind != CommandWrite && kind != CommandTime {
		err = fmt.Errorf("%w: command %d in an ordinary entry", ErrUnknownCommand, kind)
	}
	if err != nil {
		return m.stop(id, err)
	}
	ans.Reset()
	if m.mergeRole() == MergeFrozen { // rule Merge2: no effect whatever, so that it does not matter how many of them were applied
		m.applied = id
		ans.Refused = errFrozen
		return nil
	}
	now := max(m.time, stamp)
	if kind == CommandWrite {
		if prefetched != nil && !m.Valid(prefetched) {
			prefetched = nil
		}
		if err := m.write(w, now, prefetched, ans); err != nil {
			return err
		}
	}
	m.applied = id
	m.passTime(now)
	return nil
}

// Touch is told of the entries that are about to be applied, before the first of up to state.TouchMax: see state.Overlay.Touch.
func (m *Machine) Touch(payloads [][]byte) {
	if m.live == nil {
		return
	}
	var keys [state.TouchMax][]byte
	n := 0
	for _, p := range payloads[:min(len(payloads), len(keys))] {
		if len(p) <= EntryHeaderBytes || CommandKind(p[0]) != CommandWrite {
			continue
		}
		if key := putKey(p[EntryHeaderBytes:]); key != nil {
			keys[n] = key
			n++
		}
	}
	m.live.Touch(keys[:n])
}

// passTime moves the shard's time on (rule State8).
func (m *Machine) passTime(stamp int64) {
	if stamp > m.time {
		m.time = stamp
		m.sessions.expire(stamp)
	}
}

// stop remembers why nothing is applied any more.
func (m *Machine) stop(id engine.LogID, err error) error {
	err = fmt.Errorf("replica %v stops before entry %d/%d: %w", m.key, id.Term, id.Index, err)
	m.stopped = &err
	return err
}

// ApplyBlank passes over the blank entry of a term.
func (m *Machine) ApplyBlank(id engine.LogID) error {
	if err := m.next(id); err != nil {
		return err
	}
	m.applied = id
	return nil
}

// ApplyMembership applies a membership entry: the descriptor names its replicas, and ConfVersion moves.
func (m *Machine) ApplyMembership(id engine.LogID, ms *engine.Membership) error {
	if err := m.next(id); err != nil {
		return err
	}
	d := *m.desc
	d.ConfVersion++
	d.Replicas = ReplicasOf(ms)
	m.setDesc(&d)
	was := m.membership
	m.previous, m.membership = &was, engine.MembershipAt{LogID: id, Membership: ms}
	m.applied = id
	return nil
}

func (m *Machine) next(id engine.LogID) error {
	if m.stopped != nil {
		return *m.stopped
	}
	if id.Index != m.applied.Index+1 || id.Term < m.applied.Term {
		return fmt.Errorf("%w: replica %v has applied %v and was given %v", ErrOutOfOrder, m.key, m.applied, id)
	}
	return nil
}

// write applies a write, or returns ErrCold with nothing changed.
//
// The order of the questions matters (rule Cluster1): only the owner of the first key knows whether the write was applied
// before; only after it said no may the other keys decide.
func (m *Machine) write(w *Write, now int64, job *state.ReadJob, ans *Answer) error {
	if !m.ownsFirst(w) {
		ans.Refused = m.moved(false, w.FirstKey())
		return nil
	}
	inSession := !w.Session.IsZero()
	if inSession {
		switch v, row := m.sessions.check(w, now); v {
		case verdictReplay:
			row.result(&ans.Result)
			if row.outcome == OutcomeMoved {
				ans.Refused = m.moved(true, w.FirstKey())
			}
			return nil
		case verdictExpired, verdictReused:
			ans.Refused = &SessionExpiredError{ShardTime: now, Reused: v == verdictReused}
			return nil
		}
	}
	if !m.ownsAll(w) {
		// The row makes sure that a stray copy is not applied if the keys come back by a merge.
		ans.Outcome = OutcomeMoved
		ans.Refused = m.moved(inSession, m.firstOutside(w))
	} else if err := m.perform(w, now, job, &ans.Result); err != nil {
		return err
	}
	if inSession {
		m.sessions.record(w, &ans.Result)
	}
	return nil
}

// moved returns the answer to a request for key, which is not here: this shard's descriptor, and that of the shard where it went,
// as far as that is known.
func (m *Machine) moved(notApplied bool, key []byte) error {
	e := &MovedError{Descriptors: []Descriptor{*m.desc}, NotApplied: notApplied}
	if d := m.leftAt(key); d != nil {
		e.Descriptors = append(e.Descriptors, *d)
	}
	return e
}

// firstOutside returns a key of the write that is not here.
func (m *Machine) firstOutside(w *Write) []byte {
	for i := range w.Conditions {
		if !m.contains(w.Conditions[i].Key) {
			return w.Conditions[i].Key
		}
	}
	for i := range w.Ops {
		if !m.owns(&w.Ops, i) {
			if o := &w.Ops[i]; o.Kind == OpDeleteRange && m.contains(o.Key) {
				return m.desc.End // it ends behind this shard
			}
			return w.Ops[i].Key
		}
	}
	return nil
}

// owns tells whether operation i is about keys of this shard.
func (m *Machine) owns(ops *[]Op, i int) bool {
	if i >= len(*ops) {
		return true
	}
	o := &(*ops)[i]
	if o.Kind == OpDeleteRange {
		return m.contains(o.Key) && (len(o.End) == 0 || m.desc.ContainsRange(o.Key, o.End))
	}
	return m.contains(o.Key)
}

// ownsFirst tells whether the first key of the write is here, by which the table of the sessions is divided (rule Cluster1). A range whose
// end has left is still this shard's to answer for.
func (m *Machine) ownsFirst(w *Write) bool { return len(w.Ops) == 0 || m.contains(w.Ops[0].Key) }

func (m *Machine) ownsAll(w *Write) bool {
	for i := range w.Conditions {
		if !m.contains(w.Conditions[i].Key) {
			return false
		}
	}
	for i := range w.Ops {
		if !m.owns(&w.Ops, i) {
			return false
		}
	}
	return true
}

// perform decides, without changing anything, what becomes of the write; then does it.
func (m *Machine) perform(w *Write, now int64, job *state.ReadJob, res *Result) error {
	ok, err := m.conditions(w, now, job, res)
	if err != nil || !ok {
		return err
	}
	var page *state.Page
	if len(w.Ops) == 1 && w.Ops[0].Kind == OpDeleteRange {
		if page, err = m.rangePage(&w.Ops[0], job); err != nil {
			return err
		}
	} else if ok, err = m.adds(w, now, job, res); err != nil || !ok {
		return err
	}
	m.counter++
	res.Version = m.counter
	if m.live == nil {
		m.live = state.NewOverlay(&m.env.Arena)
	}
	if page != nil {
		m.deleteRange(page, &w.Ops[0], res)
		return nil
	}
	m.operations(w, now, res)
	return nil
}

// conditions tells whether all hold; if not, res says which one does not.
func (m *Machine) conditions(w *Write, now int64, job *state.ReadJob, res *Result) (bool, error) {
	failed := -1
	for i := range w.Conditions {
		c := &w.Conditions[i]
		it, found, err := m.lookup(c.Key, len(c.Value)+1, now, job)
		if err != nil {
			return false, err // even if an earlier one failed: what is cold must not decide which of them is reported
		}
		if failed >= 0 {
			continue
		}
		holds := false
		switch c.Kind {
		case ConditionExists:
			holds = found
		case ConditionAbsent:
			holds = !found
		case ConditionVersion:
			holds = c.Version == it.Version
		case ConditionValue:
			holds = found && bytes.Equal(it.Value, c.Value)
		}
		if !holds {
			failed, res.Version = i, it.Version
		}
	}
	if failed >= 0 {
		res.Outcome, res.Failed = OutcomeConditionFailed, failed
	}
	return failed < 0, nil
}

// adds computes the sums into res.Values, and keeps the old items for operations.
func (m *Machine) adds(w *Write, now int64, job *state.ReadJob, res *Result) (bool, error) {
	items := m.env.items[:0]
	failed := -1
	for i := range w.Ops {
		if w.Ops[i].Kind != OpAdd {
			continue
		}
		it, found, err := m.lookup(w.Ops[i].Key, integerBytesMax+1, now, job)
		if err != nil {
			res.Values = res.Values[:0]
			return false, err
		}
		sum, ok := addTo(it.Value, found, w.Ops[i].Delta)
		if !ok && failed < 0 {
			failed = i
		}
		items = append(items, lookup{item: it, found: found})
		res.Values = append(res.Values, sum)
	}
	m.env.items = items
	if failed >= 0 {
		res.Values = res.Values[:0]
		res.Outcome, res.Failed = OutcomeNotInteger, failed
	}
	return failed < 0, nil
}

// integerBytesMax is the longest text of an integer, with its sign.
const integerBytesMax = 20

// addTo adds delta to a decimal integer.
func addTo(value []byte, found bool, delta int64) (int64, bool) {
	var old int64
	if found {
		var err error
		if len(value) > integerBytesMax {
			return 0, false
		}
		if old, err = strconv.ParseInt(string(value), 10, 64); err != nil {
			return 0, false
		}
		if first := value[0]; first == '+' || first == '0' && len(value) > 1 || first == '-' && value[1] == '0' {
			return 0, false // only what an add would write itself is an integer: 007 may be anything
		}
	}
	if delta > 0 && old > math.MaxInt64-delta || delta < 0 && old < math.MinInt64-delta {
		return 0, false
	}
	return old + delta, true
}

// operations carries out what was decided.
func (m *Machine) operations(w *Write, now int64, res *Result) {
	add := 0
	for i := range w.Ops {
		o := &w.Ops[i]
		switch o.Kind {
		case OpPut:
			m.put(o.Key, state.Item{Version: m.counter, Expire: expireAt(o.Expire, now), Value: o.Value})
		case OpDelete:
			m.live.Delete(o.Key, m.counter)
			m.estimate.delete()
		case OpAdd:
			it := state.Item{Version: m.counter, Value: strconv.AppendInt(m.env.num[:0], res.Values[add], 10)}
			if old := m.env.items[add]; old.found {
				it.Expire = old.item.Expire
			}
			m.put(o.Key, it)
			add++
		}
	}
}

func (m *Machine) put(key []byte, it state.Item) {
	m.live.Put(key, it)
	m.estimate.put(key, len(it.Value))
}

// expireAt turns the Expire of an Op into a time; negative means after now.
func expireAt(expire, now int64) int64 {
	switch {
	case expire >= 0:
		return expire
	case expire == math.MinInt64 || now > math.MaxInt64+expire:
		return math.MaxInt64
	}
	return now - expire
}

// rangePage returns the first keys of a delete-range, up to its limit, as of this entry: the page of the store merged with
// the overlays. How many of them the store's page must hold depends on the overlays, which differ between replicas; what it
// returns does not.
func (m *Machine) rangePage(o *Op, job *state.ReadJob) (*state.Page, error) {
	if job == nil || job.Keys != nil || !bytes.Equal(job.Start, o.Key) || !bytes.Equal(job.End, m.rangeEnd(o)) {
		return nil, ErrCold
	}
	limit := rangeLimit(o)
	page := &m.env.page
	state.MergePage(page, &job.Page, state.MergeOptions{Start: job.Start, End: job.End, Limit: limit}, m.live, m.frozen)
	if page.More && len(page.Items) < limit {
		return nil, ErrCold
	}
	return page, nil
}

func rangeLimit(o *Op) int {
	if o.Limit == 0 || o.Limit > DeleteRangeMax {
		return DeleteRangeMax
	}
	return int(o.Limit)
}

// rangeEnd returns the end of a delete-range, which is the shard's if it names none.
func (m *Machine) rangeEnd(o *Op) []byte {
	if len(o.End) == 0 {
		return m.desc.End
	}
	return o.End
}

func (m *Machine) deleteRange(page *state.Page, o *Op, res *Result) {
	if len(page.Items) == rangeLimit(o) { // not page.More, which may differ between replicas
		res.More = true
		last := page.Items[len(page.Items)-1].Key
		res.Next = append(append(res.Next[:0], last...), 0)
	}
	for i := range page.Items {
		// The key may lie in the overlay that is written to: Delete of a key that is there does not move it.
		m.live.Delete(page.Items[i].Key, m.counter)
		m.estimate.delete()
	}
	res.Values = append(res.Values, int64(len(page.Items)))
}

// lookup returns the item of a key as of now: from the live overlay, the frozen one, or what was prefetched. If that was for another
// entry, so much of the value may be missing that it is as good as not there: want bytes are needed.
func (m *Machine) lookup(key []byte, want int, now int64, job *state.ReadJob) (state.Item, bool, error) {
	it, hit := m.get(key)
	if hit == state.Miss {
		if job == nil {
			return state.Item{}, false, ErrCold
		}
		i, ok := slices.BinarySearchFunc(job.Keys, key, bytes.Compare)
		if !ok || i >= len(job.Points) || job.Points[i].Cut && len(job.Points[i].Value) < want {
			return state.Item{}, false, ErrCold
		}
		if it, hit = job.Points[i].Item, state.Deleted; job.Points[i].Found {
			hit = state.Found
		}
	}
	if hit != state.Found || expired(it.Expire, now) {
		return state.Item{}, false, nil
	}
	return it, true, nil
}

func (m *Machine) get(key []byte) (state.Item, state.Hit) {
	if m.live != nil {
		if it, hit := m.live.Get(key); hit != state.Miss {
			return it, hit
		}
	}
	if m.frozen != nil {
		return m.frozen.Get(key)
	}
	return state.Item{}, state.Miss
}

func expired(expire, now int64) bool { return expire != 0 && expire <= now }
