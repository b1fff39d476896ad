package auth

import (
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/internal/door"
)

// The penalties for wrong passwords, by user and address.
const (
	PenaltyMin = 250 * time.Millisecond
	PenaltyMax = 30 * time.Second
	// penaltyForget is after how long without an attempt a penalty is forgotten.
	penaltyForget = 10 * time.Minute
	throttleSlots = 4096
)

// WaitError says when the next attempt is allowed.
type WaitError struct{ Wait time.Duration }

// Error implements error.
func (e *WaitError) Error() string {
	return fmt.Sprintf("too many wrong passwords: wait %v", e.Wait.Round(100*time.Millisecond))
}

// throttle remembers who was wrong lately. It has a fixed size: a newcomer takes the slot of whoever has the same hash, so that a
// flood of names cannot lock anybody out, nor take memory. What a flood can do is bounded by the hasher.
type throttle struct {
	seed  maphash.Seed
	mu    sync.Mutex
	slots [throttleSlots]penalty
}

type penalty struct {
	tag   uint64 // of user and address
	fails uint8
	until time.Time
}

func newThrottle() *throttle { return &throttle{seed: maphash.MakeSeed()} }

func (t *throttle) slot(user, from string) (*penalty, uint64) {
	tag := maphash.String(t.seed, user+"\x00"+door.Network(from))
	return &t.slots[tag%throttleSlots], tag
}

// enter refuses an attempt that comes too early.
func (t *throttle) enter(now time.Time, user, from string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, tag := t.slot(user, from); p.tag == tag && now.Before(p.until) {
		return &WaitError{Wait: p.until.Sub(now)}
	}
	return nil
}

// wrong notes a wrong password.
func (t *throttle) wrong(now time.Time, user, from string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, tag := t.slot(user, from)
	if p.tag != tag || now.Sub(p.until) > penaltyForget {
		*p = penalty{tag: tag}
	}
	wait := min(PenaltyMin<<min(p.fails, 16), PenaltyMax)
	p.fails = min(p.fails+1, 100)
	p.until = now.Add(wait)
}

// right forgets the penalty.
func (t *throttle) right(user, from string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, tag := t.slot(user, from); p.tag == tag {
		*p = penalty{}
	}
}
