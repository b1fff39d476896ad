package budget

import (
	"sync"
	"sync/atomic"
)

// Budget is a bound in bytes that many Accounts share.
type Budget struct {
	max     int64
	held    atomic.Int64 // by all accounts
	leaving atomic.Int64 // of that by those that were closed for it
	evicted atomic.Uint64

	mu       sync.Mutex
	accounts map[*Account]struct{}
}

// New returns a Budget of max bytes.
func New(max int64) *Budget { return &Budget{max: max, accounts: map[*Account]struct{}{}} }

// Held returns how many bytes are held.
func (b *Budget) Held() int64 { return b.held.Load() }

// Evicted returns how many accounts were closed because the bound was reached.
func (b *Budget) Evicted() uint64 { return b.evicted.Load() }

// Account is what one connection holds.
type Account struct {
	b     *Budget
	evict func()

	mu     sync.Mutex
	held   int64
	gone   bool // evict was or is being called
	closed bool
}

// Open adds an account. If it must go, evict is called, once, on a goroutine of its own: it ends the connection.
func (b *Budget) Open(evict func()) *Account {
	a := &Account{b: b, evict: evict}
	b.mu.Lock()
	b.accounts[a] = struct{}{}
	b.mu.Unlock()
	return a
}

// Add counts n bytes more, or less if n is negative.
func (a *Account) Add(n int64) {
	if n == 0 {
		return
	}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return
	}
	a.held += n
	if a.gone {
		a.b.leaving.Add(n)
	}
	total := a.b.held.Add(n)
	a.mu.Unlock()
	if n > 0 && total > a.b.max {
		a.b.shrink(a)
	}
}

// Close takes the account out, with all that it holds.
func (a *Account) Close() {
	a.b.mu.Lock()
	delete(a.b.accounts, a)
	a.b.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.closed = true
	a.b.held.Add(-a.held)
	if a.gone {
		a.b.leaving.Add(-a.held)
	}
}

// shrink closes the largest accounts until the rest is within the bound, and adder if that is not enough.
func (b *Budget) shrink(adder *Account) {
	b.mu.Lock()
	var victims []*Account
	for b.held.Load()-b.leaving.Load() > b.max {
		var largest *Account
		var most int64
		for a := range b.accounts {
			a.mu.Lock()
			if !a.gone && a.held > most {
				largest, most = a, a.held
			}
			a.mu.Unlock()
		}
		if largest == nil {
			break
		}
		victims = append(victims, largest)
		largest.leave()
	}
	if b.held.Load() > 2*b.max && adder.leave() {
		victims = append(victims, adder)
	}
	b.mu.Unlock()
	for _, a := range victims {
		b.evicted.Add(1)
		go a.evict()
	}
}

// leave marks an account as one that goes; false if it was.
func (a *Account) leave() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone || a.closed {
		return false
	}
	a.gone = true
	a.b.leaving.Add(a.held)
	return true
}
