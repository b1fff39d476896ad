package scheduler

import (
	"testing"

	"github.com/kiloraft/kiloraft/store"
)

func newsLane() (*Lane, *replica) {
	l := &Lane{news: newLaneNews(0)}
	return l, &replica{key: store.Key{Shard: 2, Replica: 1}}
}

// Samples hold the keys of recent requests as often as they were asked for, whatever their period.
func TestSamples(t *testing.T) {
	l, r := newsLane()
	keys := [][]byte{[]byte("a"), []byte("b"), []byte("c"), []byte("d")}
	const n = 100_000
	for i := range n {
		l.noteRequest(r, keys[i%len(keys)])
	}
	if len(l.news.samples) != loadSamples || len(l.news.touched) != 1 {
		t.Fatalf("%d samples, %d touched", len(l.news.samples), len(l.news.touched))
	}
	count := map[string]int{}
	for _, s := range l.news.samples {
		count[string(s.key)]++
	}
	for _, k := range keys {
		if c := count[string(k)]; c < loadSamples/8 || c > loadSamples/2 {
			t.Errorf("key %q is in %d of %d samples", k, c, loadSamples)
		}
	}
	if a := testing.AllocsPerRun(10_000, func() { l.noteRequest(r, keys[0]) }); a != 0 {
		t.Errorf("%v allocations per request", a)
	}
}

func BenchmarkNoteRequest(b *testing.B) {
	l, r := newsLane()
	key := []byte("user1234567890123456")
	b.ReportAllocs()
	for b.Loop() {
		l.noteRequest(r, key)
	}
}
