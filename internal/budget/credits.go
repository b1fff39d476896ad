package budget

import (
	"slices"
	"sync"
)

// Credits are a number of bytes of which one takes some while one needs them. Owners have them in turn: who has many requests waits for itself,
// and not others for it.
type Credits struct {
	max int64

	mu      sync.Mutex
	free    int64
	waiting map[string][]*waiter // by owner, each in order; only owners who wait
	turns   []string             // the owners who wait, in whose turn it is next
}

type waiter struct {
	n     int64
	given chan struct{} // closed when it has them
}

// NewCredits returns max credits.
func NewCredits(max int64) *Credits {
	return &Credits{max: max, free: max, waiting: map[string][]*waiter{}}
}

// Take waits for n credits, or for all there are if n is more, and returns how many it took: to be given back by Give. It returns 0 if
// done is closed before.
func (c *Credits) Take(owner string, n int64, done <-chan struct{}) int64 {
	n = min(n, c.max)
	c.mu.Lock()
	if len(c.turns) == 0 && c.free >= n {
		c.free -= n
		c.mu.Unlock()
		return n
	}
	w := &waiter{n, make(chan struct{})}
	if len(c.waiting[owner]) == 0 {
		c.turns = append(c.turns, owner)
	}
	c.waiting[owner] = append(c.waiting[owner], w)
	c.mu.Unlock()
	select {
	case <-w.given:
		return n
	case <-done:
	}
	c.mu.Lock()
	if i := slices.Index(c.waiting[owner], w); i >= 0 {
		if c.waiting[owner] = slices.Delete(c.waiting[owner], i, i+1); len(c.waiting[owner]) == 0 {
			c.leave(owner)
		}
		c.serve() // those behind it may want less
		c.mu.Unlock()
		return 0
	}
	c.mu.Unlock()
	c.Give(n) // they came at the same moment
	return 0
}

// leave takes an owner out who waits no more. c.mu is held.
func (c *Credits) leave(owner string) {
	delete(c.waiting, owner)
	if i := slices.Index(c.turns, owner); i >= 0 {
		c.turns = slices.Delete(c.turns, i, i+1)
	}
}

// Waiting tells whether anybody waits.
func (c *Credits) Waiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.turns) > 0
}

// Short tells whether who wants n now has to wait.
func (c *Credits) Short(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.turns) > 0 || c.free < min(n, c.max)
}

// Give gives credits back.
func (c *Credits) Give(n int64) {
	c.mu.Lock()
	c.free += n
	c.serve()
	c.mu.Unlock()
}

// serve lets those go on who can, one of each owner after the other. c.mu is held.
func (c *Credits) serve() {
	for len(c.turns) > 0 {
		owner := c.turns[0]
		q := c.waiting[owner]
		if q[0].n > c.free {
			return
		}
		c.free -= q[0].n
		close(q[0].given)
		q[0] = nil
		c.turns = c.turns[1:]
		if len(q) == 1 {
			delete(c.waiting, owner)
			continue
		}
		c.waiting[owner] = q[1:]
		c.turns = append(c.turns, owner)
	}
}
