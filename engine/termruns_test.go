package engine

import (
	"math/rand/v2"
	"testing"
)

// TestTermRunsModel compares the run list with a plain slice of terms.
func TestTermRunsModel(t *testing.T) {
	for seed := uint64(1); seed <= 300; seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		var l termRuns
		var terms []uint64 // terms[i] is that of index i+1
		var purged uint64
		for step := 0; step < 60; step++ {
			last := uint64(len(terms))
			switch rng.IntN(4) {
			case 0, 1:
				term := l.last().Term + uint64(rng.IntN(2))
				term = max(term, 1)
				n := 1 + rng.IntN(4)
				l.append(term, last+1, last+uint64(n))
				for ; n > 0; n-- {
					terms = append(terms, term)
				}
			case 2:
				if first := purged + 1 + uint64(rng.IntN(int(last-purged)+2)); first <= last {
					l.truncate(first)
					terms = terms[:first-1]
				}
			case 3:
				if last > purged && rng.IntN(3) == 0 {
					purged += 1 + uint64(rng.IntN(int(last-purged)))
					l.purge(LogID{terms[purged-1], purged})
				}
			}
			for i := uint64(1); i <= uint64(len(terms))+2; i++ {
				got, ok := l.term(i)
				want := i >= purged && i <= uint64(len(terms)) && i > 0
				if ok != want || ok && got != terms[i-1] {
					t.Fatalf("seed %d: term(%d) = %d, %v; want %v in %v, purged %d", seed, i, got, ok, want, terms, purged)
				}
			}
			if l.lastIndex() != uint64(len(terms)) {
				t.Fatalf("seed %d: last %d, want %d", seed, l.lastIndex(), len(terms))
			}
			checkRuns(t, seed, rng, &l, terms, purged)
		}
	}
}

func checkRuns(t *testing.T, seed uint64, rng *rand.Rand, l *termRuns, terms []uint64, purged uint64) {
	t.Helper()
	first := uint64(1 + rng.IntN(len(terms)+3))
	r := TermRun{Term: uint64(rng.IntN(10)), First: first, Last: first + uint64(rng.IntN(5))}
	want := uint64(0)
	for i := r.First; i <= r.Last && want == 0; i++ {
		if i > purged && (i > uint64(len(terms)) || terms[i-1] != r.Term) {
			want = i
		}
	}
	if got := l.differs(r); got != want {
		t.Fatalf("seed %d: differs(%v) = %d, want %d in %v purged %d", seed, r, got, want, terms, purged)
	}
	index, term := uint64(rng.IntN(len(terms)+3)), uint64(rng.IntN(10))
	wantID := l.purged
	for i := purged + 1; i <= index && i <= uint64(len(terms)); i++ {
		if terms[i-1] <= term {
			wantID = LogID{terms[i-1], i}
		}
	}
	if got := l.lastNotAbove(index, term); got != wantID {
		t.Fatalf("seed %d: lastNotAbove(%d, %d) = %v, want %v in %v purged %d", seed, index, term, got, wantID, terms, purged)
	}
}

func TestTermRunsBeyond(t *testing.T) {
	var l termRuns
	l.append(1, 1, 5)
	l.purge(LogID{3, 9})
	if l.last() != (LogID{3, 9}) || len(l.runs) != 0 {
		t.Fatal(l)
	}
	for name, f := range map[string]func(){
		"gap":  func() { l.append(3, 11, 12) },
		"term": func() { l.append(2, 10, 10) },
		"id":   func() { l.id(10) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error(name, "must panic")
				}
			}()
			f()
		}()
	}
}
