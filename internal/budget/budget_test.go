package budget

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// Over the bound the largest goes, what it holds is counted until it is given back, and over twice the bound whoever adds goes.
func TestLargestGoes(t *testing.T) {
	b := New(100)
	gone := make(chan string, 10)
	open := func(name string) *Account { return b.Open("one", func() { gone <- name }) }
	small, large, other := open("small"), open("large"), open("other")
	small.Add(20)
	large.Add(60)
	other.Add(20)
	if len(gone) != 0 || b.Evicted() != 0 {
		t.Fatal("somebody went at the bound")
	}
	small.Add(1)
	if got := <-gone; got != "large" {
		t.Fatalf("%s went", got)
	}
	large.Add(-10) // 91 held, 50 of that leaving: 41
	small.Add(59)
	if b.Held() != 150 || b.Evicted() != 1 {
		t.Fatalf("%d held, %d gone", b.Held(), b.Evicted())
	}
	large.Add(51) // those who went may not add for ever either
	if b.Evicted() != 1 {
		t.Fatal("it went twice")
	}
	other.Add(1)
	for range 2 { // the largest, and who added
		<-gone
	}
	for _, a := range []*Account{small, large, other} {
		a.Close()
		a.Close()
		a.Add(5)
	}
	if b.Held() != 0 || b.leaving.Load() != 0 {
		t.Errorf("%d held, %d leaving", b.Held(), b.leaving.Load())
	}
}

// Over the bound the one goes who holds most with all its accounts, though another has a larger one.
func TestGreediestOwnerGoes(t *testing.T) {
	b := New(100)
	gone := make(chan int, 100)
	honest := b.Open("honest", func() { gone <- -1 })
	honest.Add(30)
	for i := range 10 {
		b.Open("greedy", func() { gone <- i }).Add(10)
	}
	for range 3 {
		if i := <-gone; i < 0 {
			t.Fatal("the one went who holds less")
		}
	}
	if held := b.Held() - b.leaving.Load(); held != 100 || b.Evicted() != 3 {
		t.Errorf("%d held, %d gone", held, b.Evicted())
	}
	honest.Add(41) // now it has more than the other, 70
	if i := <-gone; i != -1 {
		t.Errorf("%d went", i)
	}
}

// Whatever many accounts do at once, nothing is held in the end.
func TestAccounts(t *testing.T) {
	b := New(1000)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range 200 {
				a := b.Open(string(rune('a'+r.IntN(3))), func() {})
				sum := int64(0)
				for range r.IntN(20) {
					n := r.Int64N(200)
					a.Add(n)
					if sum += n; r.IntN(3) == 0 {
						a.Add(-sum)
						sum = 0
					}
				}
				a.Close()
			}
		})
	}
	wg.Wait()
	if b.Held() != 0 || b.leaving.Load() != 0 || len(b.accounts) != 0 || len(b.owners) != 0 {
		t.Errorf("%d held, %d leaving, %d accounts", b.Held(), b.leaving.Load(), len(b.accounts))
	}
}

// Who waits is served in turn; who gives up is out of the way.
func TestCredits(t *testing.T) {
	c := NewCredits(10)
	if n := c.Take("one", 50, nil); n != 10 {
		t.Fatalf("%d of 10 taken", n)
	}
	never := make(chan struct{})
	impatient := make(chan struct{})
	order := make(chan int, 2)
	gaveUp := make(chan int64)
	go func() { gaveUp <- c.Take("one", 10, impatient) }()
	waitFor(t, func() bool { return len(c.waiting["one"]) == 1 }, c)
	go func() { c.Take("one", 4, never); order <- 4 }()
	waitFor(t, func() bool { return len(c.waiting["one"]) == 2 }, c)
	go func() { c.Take("one", 6, never); order <- 6 }()
	waitFor(t, func() bool { return len(c.waiting["one"]) == 3 }, c)
	c.Give(4)
	waitFor(t, func() bool { return c.free == 4 }, c) // the first wants all
	close(impatient)
	if n := <-gaveUp; n != 0 {
		t.Fatalf("%d taken after all", n)
	}
	if got := <-order; got != 4 {
		t.Fatalf("%d came first", got)
	}
	c.Give(6)
	if got := <-order; got != 6 {
		t.Fatal(got)
	}
	c.Give(10)
	if c.free != 10 {
		t.Errorf("%d free", c.free)
	}
}

// Of several owners each gets one after the other, however many of its requests wait; who gives up has no turn any more.
func TestCreditsOfOwners(t *testing.T) {
	c := NewCredits(10)
	c.Take("greedy", 10, nil)
	never := make(chan struct{})
	order := make(chan string, 10)
	waiting := func() (n int) {
		for _, q := range c.waiting {
			n += len(q)
		}
		return n
	}
	var all sync.WaitGroup
	for i, owner := range []string{"greedy", "greedy", "greedy", "honest", "greedy", "other"} {
		all.Go(func() {
			c.Take(owner, 10, never)
			order <- owner
		})
		waitFor(t, func() bool { return waiting() == i+1 }, c)
	}
	impatient := make(chan struct{})
	all.Go(func() {
		if n := c.Take("gone", 10, impatient); n != 0 {
			t.Errorf("%d taken by who has gone", n)
		}
	})
	waitFor(t, func() bool { return waiting() == 7 }, c)
	close(impatient)
	waitFor(t, func() bool { return waiting() == 6 }, c)
	for _, want := range []string{"greedy", "honest", "other", "greedy", "greedy", "greedy"} {
		c.Give(10)
		if got := <-order; got != want {
			t.Fatalf("%s came, want %s", got, want)
		}
	}
	c.Give(10)
	all.Wait()
	if c.free != 10 || len(c.waiting) != 0 || len(c.turns) != 0 {
		t.Errorf("%d free, %d waiting, %d turns", c.free, len(c.waiting), len(c.turns))
	}
}

func waitFor(t *testing.T, f func() bool, c *Credits) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		ok := f()
		c.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}
