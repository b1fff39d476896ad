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
	open := func(name string) *Account { return b.Open(func() { gone <- name }) }
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

// Whatever many accounts do at once, nothing is held in the end.
func TestAccounts(t *testing.T) {
	b := New(1000)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range 200 {
				a := b.Open(func() {})
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
	if b.Held() != 0 || b.leaving.Load() != 0 || len(b.accounts) != 0 {
		t.Errorf("%d held, %d leaving, %d accounts", b.Held(), b.leaving.Load(), len(b.accounts))
	}
}

// Who waits is served in turn; who gives up is out of the way.
func TestCredits(t *testing.T) {
	c := NewCredits(10)
	if n := c.Take(50, nil); n != 10 {
		t.Fatalf("%d of 10 taken", n)
	}
	never := make(chan struct{})
	impatient := make(chan struct{})
	order := make(chan int, 2)
	gaveUp := make(chan int64)
	go func() { gaveUp <- c.Take(10, impatient) }()
	waitFor(t, func() bool { return len(c.waiting) == 1 }, c)
	go func() { c.Take(4, never); order <- 4 }()
	waitFor(t, func() bool { return len(c.waiting) == 2 }, c)
	go func() { c.Take(6, never); order <- 6 }()
	waitFor(t, func() bool { return len(c.waiting) == 3 }, c)
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
