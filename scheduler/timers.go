package scheduler

import "github.com/kiloraft/kiloraft/engine"

// timers is a binary heap of the replicas of a lane that have a deadline. It is lazy: a deadline that moves into the
// future leaves the replica where it is, and it is put back when it comes up too early. So a busy shard, whose deadline
// moves with every event, costs nothing here.
type timers struct {
	heap []*replica
}

// set notes that r wants a tick at deadline; zero means never.
func (t *timers) set(r *replica, deadline engine.Instant) {
	r.deadline = deadline
	if deadline == 0 {
		return // a stale place in the heap is dropped when it comes up
	}
	switch {
	case r.timerAt < 0:
		r.timerKey = deadline
		r.timerAt = int32(len(t.heap))
		t.heap = append(t.heap, r)
		t.up(int(r.timerAt))
	case deadline < r.timerKey:
		r.timerKey = deadline
		t.up(int(r.timerAt))
	}
}

// next tells when the heap wants to be looked at; zero means never.
func (t *timers) next() engine.Instant {
	if len(t.heap) == 0 {
		return 0
	}
	return t.heap[0].timerKey
}

// due removes and returns a replica whose deadline has come, or nil.
func (t *timers) due(now engine.Instant) *replica {
	for len(t.heap) > 0 && t.heap[0].timerKey <= now {
		r := t.heap[0]
		if r.deadline > now {
			r.timerKey = r.deadline
			t.down(0)
			continue
		}
		t.remove(r)
		if r.deadline != 0 {
			return r
		}
	}
	return nil
}

// remove takes r out of the heap.
func (t *timers) remove(r *replica) {
	i := int(r.timerAt)
	if i < 0 {
		return
	}
	last := len(t.heap) - 1
	t.swap(i, last)
	t.heap[last] = nil
	t.heap = t.heap[:last]
	r.timerAt = -1
	if i < last {
		t.down(i)
		t.up(i)
	}
}

func (t *timers) swap(i, j int) {
	h := t.heap
	h[i], h[j] = h[j], h[i]
	h[i].timerAt, h[j].timerAt = int32(i), int32(j)
}

func (t *timers) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if t.heap[p].timerKey <= t.heap[i].timerKey {
			return
		}
		t.swap(p, i)
		i = p
	}
}

func (t *timers) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(t.heap) {
			return
		}
		if c+1 < len(t.heap) && t.heap[c+1].timerKey < t.heap[c].timerKey {
			c++
		}
		if t.heap[i].timerKey <= t.heap[c].timerKey {
			return
		}
		t.swap(i, c)
		i = c
	}
}
