package shard

import (
	"testing"
)

// What cannot be judged by a shard time that stands still is not proposed without a stamp (rule State8).
func TestNeedsStamp(t *testing.T) {
	m := &Machine{time: 1_000}
	young, old := NewSessionID(1_000+horizonMs+1, 1), NewSessionID(1_000+horizonMs, 1)
	put := []Op{{Kind: OpPut, Key: []byte("k")}}
	for _, c := range []struct {
		what string
		w    Write
		want bool
	}{
		{"a session of after the last stamp", Write{Session: young, Ops: put}, true},
		{"a session that the last stamp can judge", Write{Session: old, Ops: put}, false},
		{"no session", Write{Ops: put}, false},
		{"a time to live", Write{Ops: []Op{{Kind: OpPut, Key: []byte("k"), Expire: -5}}}, true},
		{"an absolute expiry", Write{Ops: []Op{{Kind: OpPut, Key: []byte("k"), Expire: 5}}}, false},
	} {
		if got := m.NeedsStamp(&c.w); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
