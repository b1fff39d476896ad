package load

import (
	"sync"
	"sync/atomic"
	"time"
)

// rejectedListMax bounds the rejected records that a report names; the rest are only counted.
const rejectedListMax = 100

// Rejected is a record that was skipped, and why.
type Rejected struct {
	Where string `json:"where"` // "line 17", a path or a key
	Error string `json:"error"`
}

// Report is the outcome of an import or export.
type Report struct {
	Keys          int64      `json:"keys"`
	Bytes         int64      `json:"bytes"` // of keys and values
	RejectedTotal int64      `json:"rejected_total"`
	Rejected      []Rejected `json:"rejected"` // the first of them
	DurationS     float64    `json:"duration_s"`
}

// Progress is what a progress bar shows; safe to read at any time.
type Progress struct {
	Keys, Bytes, Rejected atomic.Int64
	KeysTotal, BytesTotal atomic.Int64 // 0: not known
}

// tally collects a Report and a Progress from many goroutines.
type tally struct {
	start time.Time
	p     *Progress
	mu    sync.Mutex
	list  []Rejected // guarded by mu
}

func newTally(p *Progress) *tally {
	if p == nil {
		p = new(Progress)
	}
	return &tally{start: time.Now(), p: p}
}

func (t *tally) done(key, value []byte) {
	t.p.Keys.Add(1)
	t.p.Bytes.Add(int64(len(key) + len(value)))
}

func (t *tally) reject(where string, err error) {
	t.p.Rejected.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.list) < rejectedListMax {
		t.list = append(t.list, Rejected{Where: where, Error: err.Error()})
	}
}

func (t *tally) report() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.list
	if list == nil {
		list = []Rejected{}
	}
	return Report{Keys: t.p.Keys.Load(), Bytes: t.p.Bytes.Load(), RejectedTotal: t.p.Rejected.Load(), Rejected: list,
		DurationS: time.Since(t.start).Seconds()}
}
