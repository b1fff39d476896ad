package state

// liveTablets counts the live extents of each tablet. Ids are close together, and nearly all tablets have one extent, so each takes a bit, 64 to
// an entry, and only more extents a count. The zero value is empty.
type liveTablets struct {
	bits map[TabletID]uint64
	more map[TabletID]int // extents beyond the first
	n    int              // tablets with any
}

func (l *liveTablets) has(t TabletID) bool { return l.bits[t>>6]&(1<<(t&63)) != 0 }

// add counts one more extent of t.
func (l *liveTablets) add(t TabletID) {
	if l.bits == nil {
		l.bits, l.more = map[TabletID]uint64{}, map[TabletID]int{}
	}
	if l.has(t) {
		l.more[t]++
		return
	}
	l.bits[t>>6] |= 1 << (t & 63)
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
	if l.bits[t>>6] &^= 1 << (t & 63); l.bits[t>>6] == 0 {
		delete(l.bits, t>>6)
	}
}
