package scheduler

import "testing"

// FuzzHeaders reads anything as a heartbeat of a node and as the header of a snapshot.
func FuzzHeaders(f *testing.F) {
	f.Add((&nodeHeartbeat{Incarnation: 1, SentAt: 2, Awake: []byte{1, 2}, SyncTime: 3}).append(nil))
	f.Add((&snapshotHeader{shard: 1, from: 2, to: 3, stream: 4}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, h2 nodeHeartbeat
		if h.decode(b) == nil {
			if err := h2.decode(h.append(nil)); err != nil || string(h2.append(nil)) != string(h.append(nil)) {
				t.Fatalf("%+v came back as %+v, %v", h, h2, err)
			}
		}
		var s, s2 snapshotHeader
		if s.decode(b) == nil {
			if err := s2.decode(s.append(nil)); err != nil || s != s2 {
				t.Fatalf("%+v came back as %+v, %v", s, s2, err)
			}
		}
	})
}
