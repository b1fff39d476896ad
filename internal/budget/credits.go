package budget

import "sync"

// Credits are a number of bytes of which one takes some while one needs them.
type Credits struct {
	max int64

	mu      sync.Mutex
	free    int64
	waiting []*waiter // in order
}

type waiter struct {
	n     int64
	given chan struct{} // closed when it has them
}

// NewCredits returns max credits.
func NewCredits(max int64) *Credits { return &Credits{max: max, free: max} }

// Take waits for n credits, or for all there are if n is more, and returns how many it took: to be given back by Give. It returns 0 if
// done is closed before.
func (c *Credits) Take(n int64, done <-chan struct{}) int64 {
	n = min(n, c.max)
	c.mu.Lock()
	if len(c.waiting) == 0 && c.free >= n {
		c.free -= n
		c.mu.Unlock()
		return n
	}
	w := &waiter{n, make(chan struct{})}
	c.waiting = append(c.waiting, w)
	c.mu.Unlock()
	select {
	case <-w.given:
		return n
	case <-done:
	}
	c.mu.Lock()
	for i := range c.waiting {
		if c.waiting[i] == w {
			c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
			c.serve() // those behind it may want less
			c.mu.Unlock()
			return 0
		}
	}
	c.mu.Unlock()
	c.Give(n) // they came at the same moment
	return 0
}

// Waiting tells whether anybody waits.
func (c *Credits) Waiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) > 0
}

// Short tells whether who wants n now has to wait.
func (c *Credits) Short(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) > 0 || c.free < min(n, c.max)
}

// Give gives credits back.
func (c *Credits) Give(n int64) {
	c.mu.Lock()
	c.free += n
	c.serve()
	c.mu.Unlock()
}

// serve lets those go on who can. c.mu is held.
func (c *Credits) serve() {
	for len(c.waiting) > 0 && c.waiting[0].n <= c.free {
		c.free -= c.waiting[0].n
		close(c.waiting[0].given)
		c.waiting[0] = nil
		c.waiting = c.waiting[1:]
	}
}
