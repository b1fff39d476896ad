package router

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

func (m *Map) layout() string {
	out := ""
	for _, p := range m.pieces {
		out += fmt.Sprintf("%d[%s,%s) ", p.desc.Shard, p.start, p.end)
	}
	return out
}

// Among shards that cover a key the highest Version owns it (rule Split5), in whatever order descriptors arrive.
func TestMapTrimsByVersion(t *testing.T) {
	for _, c := range []struct {
		name  string
		descs []*shard.Descriptor
		want  string
	}{
		{"split, parent and child", []*shard.Descriptor{desc(2, "", "", 1), desc(2, "", "m", 2), desc(3, "m", "", 2)}, "2[,m) 3[m,) "},
		{"split, child alone", []*shard.Descriptor{desc(2, "", "", 1), desc(3, "m", "", 2)}, "2[,m) 3[m,) "},
		{"split, child in the middle", []*shard.Descriptor{desc(2, "", "", 1), desc(3, "f", "m", 2)}, "2[,f) 3[f,m) 2[m,) "},
		{"split, parent alone leaves a gap", []*shard.Descriptor{desc(2, "", "", 1), desc(2, "", "m", 2)}, "2[,m) "},
		{"merge", []*shard.Descriptor{desc(2, "", "m", 2), desc(3, "m", "", 2), desc(2, "", "", 3)}, "2[,) "},
		{"merge, then the dead one's descriptor", []*shard.Descriptor{desc(2, "", "", 3), desc(3, "m", "", 2)}, "2[,) "},
		{"older of the same shard", []*shard.Descriptor{desc(2, "", "m", 2), desc(3, "m", "", 2), desc(2, "", "", 1)}, "2[,m) 3[m,) "},
		{"merge, after what has seen more changes of members", []*shard.Descriptor{conf(desc(2, "", "m", 2), 9), desc(2, "", "", 3)}, "2[,) "},
		{"merge, before what has seen more changes of members", []*shard.Descriptor{desc(2, "", "", 3), conf(desc(2, "", "m", 2), 9)}, "2[,) "},
		{"the meta shard owns no user key", []*shard.Descriptor{desc(1, "", "", 9), desc(2, "", "m", 1)}, "2[,m) "},
		{"malformed", []*shard.Descriptor{desc(2, "m", "a", 1), {}}, ""},
	} {
		m := NewMap()
		for _, d := range c.descs {
			m.Update(*d)
		}
		if got := m.layout(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func conf(d *shard.Descriptor, version uint64) *shard.Descriptor {
	d.ConfVersion = version
	return d
}

func TestMapConfVersion(t *testing.T) {
	m := NewMap()
	m.Update(*desc(2, "", "", 1))
	m.SetLeader(2, 3)
	d := desc(2, "", "", 1)
	d.ConfVersion, d.Replicas = 2, d.Replicas[:2]
	if !m.Update(*d) || m.Update(*d) {
		t.Error("news")
	}
	r, ok := m.Lookup([]byte("x"))
	if !ok || len(r.Desc.Replicas) != 2 || r.Leader != 0 {
		t.Errorf("%v %+v", ok, r)
	}
}

// A random history of splits and merges, delivered in random order, with repetitions: the map ends as the history does.
func TestMapConverges(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range 50 {
		f := newFake(t, "h", "p")
		var history []shard.Descriptor
		for i := range 15 {
			for _, d := range f.descs {
				history = append(history, *d)
			}
			if rnd.IntN(3) == 0 {
				f.merge(string(f.descs[1+rnd.IntN(len(f.descs)-1)].Start))
			} else {
				f.split(fmt.Sprintf("%c", 'a'+rnd.IntN(26)), engine.ShardID(100+i))
			}
		}
		for _, d := range f.descs {
			history = append(history, *d)
		}
		m := NewMap()
		rnd.Shuffle(len(history), func(i, j int) { history[i], history[j] = history[j], history[i] })
		for _, d := range history {
			m.Update(d)
			gaps := 0
			for i, p := range m.pieces {
				if i+1 == len(m.pieces) && len(p.end) > 0 || i+1 < len(m.pieces) && string(p.end) != string(m.pieces[i+1].start) {
					gaps++
				}
			}
			if gaps != m.gaps {
				t.Fatalf("seed %d: %d gaps, said are %d: %s", seed, gaps, m.gaps, m.layout())
			}
			for i := 1; i < len(m.pieces); i++ {
				if p := m.pieces[i-1]; len(p.end) == 0 || bytes.Compare(p.end, m.pieces[i].start) > 0 {
					t.Fatalf("seed %d: overlap: %s", seed, m.layout())
				}
			}
		}
		m.Update(history...)
		for _, d := range f.descs[1:] {
			m.Update(*d)
		}
		for k := byte('a'); k <= 'z'; k++ {
			want := ""
			for _, d := range f.descs[1:] {
				if d.Contains([]byte{k}) {
					want = fmt.Sprint(d.Shard)
				}
			}
			r, ok := m.Lookup([]byte{k})
			if ok && fmt.Sprint(r.Desc.Shard) != want {
				t.Fatalf("seed %d round %d: %c is in %d, want %s: %s", seed, round, k, r.Desc.Shard, want, m.layout())
			}
		}
	}
}

func TestMapLookups(t *testing.T) {
	m := NewMap()
	m.Update(*desc(2, "", "g", 1), *desc(4, "p", "", 1), *desc(3, "g", "m", 1)) // a gap [m, p)
	for key, want := range map[string]engine.ShardID{"": 2, "a": 2, "g": 3, "lz": 3, "m": 0, "o": 0, "p": 4, "zz": 4} {
		r, ok := m.Lookup([]byte(key))
		if ok != (want != 0) || ok && (r.Desc.Shard != want || !r.Contains([]byte(key))) {
			t.Errorf("%q: %v %+v", key, ok, r)
		}
	}
	for end, want := range map[string]engine.ShardID{"": 4, "a": 2, "g": 2, "g0": 3, "m": 3, "n": 0, "p": 0, "p0": 4} {
		r, ok := m.LookupBefore([]byte(end))
		if ok != (want != 0) || ok && r.Desc.Shard != want {
			t.Errorf("before %q: %v %+v", end, ok, r)
		}
	}
	if routes, more := m.Page([]byte("g"), 1); !more || len(routes) != 1 || routes[0].Desc.Shard != 3 {
		t.Errorf("%v %v", routes, more)
	}
	if routes, more := m.Page([]byte("h"), 9); more || len(routes) != 2 || m.Len() != 3 {
		t.Errorf("%v %v", routes, more)
	}
}
