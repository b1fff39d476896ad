package state

import "github.com/kiloraft/kiloraft/internal/bitset"

// liveTablets counts the live extents of each tablet. Nearly all have one, so each takes a bit, and only more extents a count.
// The zero value is empty.
type liveTablets struct {
	some bitset.Set[TabletID]
	more map[TabletID]int // extents beyond the first
	n    int              // tablets with any
}

func (l *liveTablets) has(t TabletID) bool { return l.some.Has(t) }

// add counts one more extent of t.
func (l *liveTablets) add(t TabletID) {
	if l.some == nil {
		l.some, l.more = bitset.Set[TabletID]{}, map[TabletID]int{}
	}
	if l.has(t) {
		l.more[t]++
		return
	}
	l.some.Add(t)
	l.n++
}

// remove counts one less of t, which has some.
func (l *liveTablets) remove(t TabletID) {
	if n := l.more[t]; n > 1 {
		l.more[t] = n - 1
		return
	} else if n == 1 {
		delete(l.more, t)
		return
	}
	l.n--
	l.some.Remove(t)
}
