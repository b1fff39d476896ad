package simrt

import "github.com/kiloraft/kiloraft/engine"

// event is something that happens at a time. Of two at the same time the one that was planned first comes first.
type event struct {
	at  engine.Instant
	seq uint64
	n   *Node // whom alone it concerns; nil: maybe all
	do  func()
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// events is a binary heap. (The one of the standard library would allocate at every event, and events are what a simulation is made of.)
type events []event

func (h *events) push(e event) {
	q := append(*h, e)
	i := len(q) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !e.before(&q[p]) {
			break
		}
		q[i] = q[p]
		i = p
	}
	q[i] = e
	*h = q
}

func (h *events) pop() event {
	q := *h
	top := q[0]
	last := len(q) - 1
	e := q[last]
	q[last] = event{}
	q = q[:last]
	*h = q
	if last == 0 {
		return top
	}
	i := 0
	for {
		c := 2*i + 1
		if c >= last {
			break
		}
		if c+1 < last && q[c+1].before(&q[c]) {
			c++
		}
		if !q[c].before(&e) {
			break
		}
		q[i] = q[c]
		i = c
	}
	q[i] = e
	return top
}
