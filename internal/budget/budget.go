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
	owners   map[string]*owner // of accounts
}

// owner is who has accounts, all together.
type owner struct {
	staying  atomic.Int64 // bytes of those that were not closed for the bound
	accounts int          // guarded by Budget.mu
}

// New returns a Budget of max bytes.
func New(max int64) *Budget {
	return &Budget{max: max, accounts: map[*Account]struct{}{}, owners: map[string]*owner{}}
}

// Held returns how many bytes are held.
func (b *Budget) Held() int64 { return b.held.Load() }

// Evicted returns how many accounts were closed because the bound was reached.
func (b *Budget) Evicted() uint64 { return b.evicted.Load() }

// Account is what one connection holds.
type Account struct {
	b     *Budget
	name  string // of the owner
	owner *owner
	evict func()

	mu     sync.Mutex
	held   int64
	gone   bool // evict was or is being called
	closed bool
}

// Open adds an account of an owner. If it must go, evict is called, once, on a goroutine of its own: it ends the connection.
func (b *Budget) Open(name string, evict func()) *Account {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.owners[name]
	if o == nil {
		o = &owner{}
		b.owners[name] = o
	}
	o.accounts++
	a := &Account{b: b, name: name, owner: o, evict: evict}
	b.accounts[a] = struct{}{}
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
	} else {
		a.owner.staying.Add(n)
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
	defer a.b.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.closed = true
	delete(a.b.accounts, a)
	if a.owner.accounts--; a.owner.accounts == 0 {
		delete(a.b.owners, a.name)
	}
	a.b.held.Add(-a.held)
	if a.gone {
		a.b.leaving.Add(-a.held)
	} else {
		a.owner.staying.Add(-a.held)
	}
}

// shrink closes the largest accounts of the owner who holds most until the rest is within the bound, and adder if that is not enough.
func (b *Budget) shrink(adder *Account) {
	b.mu.Lock()
	var victims []*Account
	for b.held.Load()-b.leaving.Load() > b.max {
		largest := b.largest(b.greediest())
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

// greediest is the owner who holds most. b.mu is held.
func (b *Budget) greediest() (o *owner) {
	var most int64
	for _, other := range b.owners {
		if n := other.staying.Load(); n > most {
			o, most = other, n
		}
	}
	return o
}

// largest is the account of an owner that holds most. b.mu is held.
func (b *Budget) largest(of *owner) (largest *Account) {
	var most int64
	for a := range b.accounts {
		if a.owner != of {
			continue
		}
		a.mu.Lock()
		if !a.gone && a.held > most {
			largest, most = a, a.held
		}
		a.mu.Unlock()
	}
	return largest
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
	a.owner.staying.Add(-a.held)
	return true
}
