package shard

import (
	"bytes"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
)

// FuzzRecord opens a machine from anything that a store may hold as its record: descriptor, sessions, estimate, merge. What is accepted is
// written and opened again the same.
func FuzzRecord(f *testing.F) {
	d := testDescriptor()
	m := &Machine{desc: &d, counter: 7, time: 1e12}
	f.Add(m.appendMeta(nil, nil))
	w := fullWrite()
	m.sessions.record(&w, &Result{Version: 5})
	m.merge = &MergeState{Role: MergePreparing}
	f.Add(m.appendMeta(nil, nil))
	key := store.Key{Shard: d.Shard, Replica: 1}
	f.Fuzz(func(t *testing.T, b []byte) {
		rec := &state.Record{Key: key, Applied: engine.LogID{Term: 1, Index: 1}, Meta: b}
		m, err := Open(&Env{}, rec)
		if err != nil {
			return
		}
		enc := m.appendMeta(nil, nil)
		rec.Meta = enc
		again, err := Open(&Env{}, rec)
		if err != nil || !bytes.Equal(again.appendMeta(nil, nil), enc) {
			t.Fatalf("%x is opened, written as %x and not opened the same: %v", b, enc, err)
		}
	})
}

// FuzzEntry reads anything as the payload of a log entry.
func FuzzEntry(f *testing.F) {
	w := fullWrite()
	f.Add(AppendWriteEntry(nil, 1e12, AppendWrite(nil, &w)))
	f.Add(AppendTimeEntry(nil, 1e12))
	f.Add(AppendMergeEntry(nil, CommandPrepareMerge, 1e12, &MergeStep{Version: 1, Other: 2}))
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, stamp, body, err := SplitEntry(b)
		if err != nil {
			return
		}
		if again := append(appendEntryHeader(nil, kind, stamp), body...); len(again) > len(b) {
			t.Fatalf("%x is read as %x", b, again) // a header of the library's may be longer than ours, never shorter
		}
		if s, err := decodeMergeStep(body); err == nil {
			enc := AppendMergeEntry(nil, kind, stamp, &s)
			_, _, body, _ := SplitEntry(enc)
			if again, err := decodeMergeStep(body); err != nil || again != s {
				t.Fatalf("%+v came back as %+v, %v", s, again, err)
			}
		}
		_, _ = DecodeSplit(body)
	})
}
