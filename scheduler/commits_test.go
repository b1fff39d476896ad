package scheduler

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
)

// TestCommitsWaitForARide: a commit index is told by a message of its own only to who has not got it with entries, and after a quarter of a heartbeat
// interval; where many wait, after two whole ones, except for a split, which the followers are waited for.
func TestCommitsWaitForARide(t *testing.T) {
	n := newStoreNode(t)
	l, hb := n.l, engine.Instant(n.s.cfg.HeartbeatInterval)
	r := n.create(2)
	peer := engine.Peer{Node: 2, Replica: 2}
	id := engine.LogID{Term: 1, Index: 9}
	for name, c := range map[string]struct {
		many, told, birth bool
		age               engine.Instant
		sent              int
		waits             bool
	}{
		"few, too early":       {age: hb/4 - 1, waits: true},
		"few":                  {age: hb / 4, sent: 1},
		"few, told by entries": {age: hb / 4, told: true},
		"many":                 {many: true, age: hb / 4, waits: true},
		"many, told":           {many: true, age: hb / 4, told: true},
		"many, a split":        {many: true, age: 0, birth: true, sent: 1},
		"many, almost":         {many: true, age: 2*hb - 1, waits: true},
		"many, long enough":    {many: true, age: 2*hb + hb/4, sent: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r.peers = []peerSlot{{peer: peer}}
			l.queueCommit(r, &engine.Command{Vote: r.eng.Status().Vote, LogID: id, SentAt: l.now})
			look := func() {
				for c.many && len(l.commits) <= commitsMany { // others come all the time
					l.commits = append(l.commits, pendingCommit{r: &replica{removed: true}})
				}
				l.sendCommits()
			}
			if c.told {
				r.peers[0].commit = id
			}
			if c.birth {
				r.birth = &birth{parent: r}
				l.queueCommit(r, &engine.Command{Vote: r.eng.Status().Vote, LogID: id, SentAt: l.now})
			}
			o, start := l.out(2), l.now
			o.count = 0
			for l.now = start; l.now < start+c.age; l.now += max(1, min(hb/8, start+c.age-l.now)) {
				look()
			}
			look()
			if o.count != c.sent || (r.commitAt != 0) != c.waits {
				t.Errorf("%d sent, waits %v", o.count, r.commitAt != 0)
			}
			if c.waits && (l.commitAt <= l.now || l.commitAt > start+2*hb+hb/2) {
				t.Errorf("next look after %d, at %d of %d", l.now-start, l.commitAt-start, 2*hb)
			}
			l.commits, r.commitAt, r.birth = nil, 0, nil
		})
	}
	r.peers = nil
}
