package placement

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
)

// ReshapeShard is a shard as the reshaper sees it. A list of them is in order of their start keys.
type ReshapeShard struct {
	ID     engine.ShardID
	Start  []byte
	End    []byte
	Bytes  uint64
	Load   float64 // reads and writes per second
	Busy   bool    // in an operation, without a leader, or in a membership change: not to be touched
	ByAuto bool    // an automatic split has made it: it may be merged away
}

// ReshapeConfig says when shards are split and merged. Times are in ms.
type ReshapeConfig struct {
	// SplitBytes: a larger shard is split by size; 0: never. The parts have about half of it.
	SplitBytes uint64
	// SplitLoad: a shard with more requests per second for HotMS is split where its load is halved; 0: never.
	SplitLoad float64
	HotMS     int64
	// MergeMS: two neighbours that were small and cold together for so long are merged, if an automatic split has made the right one;
	// 0: never. Small and cold is mergePart of what splits a shard, so that neither undoes the other.
	MergeMS int64
	// Max bounds the proposals of one round; 0: no bound.
	Max int
}

const (
	mergePart = 0.25
	// mergeBytesDefault is small when nothing is split by size.
	mergeBytesDefault = 16 << 20
	mergeLoadDefault  = 100
	// splitPartsMax bounds the parts of one automatic split.
	splitPartsMax = 64
)

// ReshapeKind is what is proposed.
type ReshapeKind uint8

// The kinds of proposals.
const (
	SplitBySize ReshapeKind = iota + 1
	SplitByLoad
	MergeCold
)

// Reshape is one proposal.
type Reshape struct {
	Kind  ReshapeKind
	Shard engine.ShardID
	Other engine.ShardID // the right neighbour in a merge
	Parts uint64         // of SplitBySize
	Why   string
}

// Reshaper decides which shards are split and merged by themselves. What it remembers is since when a shard is hot and a pair is cold: a
// new one starts counting anew. It reads no clock.
type Reshaper struct {
	hot  map[engine.ShardID]int64
	cold map[engine.ShardID]int64 // by the right one
	rest map[engine.ShardID]int64 // until when a shard is left alone
}

// NewReshaper returns one that has seen nothing yet.
func NewReshaper() *Reshaper {
	return &Reshaper{hot: map[engine.ShardID]int64{}, cold: map[engine.ShardID]int64{}, rest: map[engine.ShardID]int64{}}
}

// Rest has a shard left alone until then, in ms: it cannot be split now.
func (r *Reshaper) Rest(until int64, id engine.ShardID) { r.rest[id] = until }

// Plan looks at all shards at the time now, in ms, and says what to do.
func (r *Reshaper) Plan(now int64, shards []ReshapeShard, cfg ReshapeConfig) []Reshape {
	for id, until := range r.rest {
		if now >= until {
			delete(r.rest, id)
		}
	}
	var list []Reshape
	full := func() bool { return cfg.Max > 0 && len(list) >= cfg.Max }
	hot, cold := map[engine.ShardID]int64{}, map[engine.ShardID]int64{}
	taken := engine.ShardID(0) // the last shard that something is proposed for
	for i := range shards {
		s := &shards[i]
		if p, ok := r.split(now, s, &cfg, hot); ok && !full() {
			list, taken = append(list, p), s.ID
		}
		if i == 0 || cfg.MergeMS <= 0 {
			continue
		}
		left := &shards[i-1]
		since, ok := r.coldPair(now, left, s, &cfg)
		if !ok {
			continue
		}
		cold[s.ID] = since
		if now-since >= cfg.MergeMS && taken != left.ID && taken != s.ID && !left.Busy && !s.Busy && !full() {
			list, taken = append(list, Reshape{Kind: MergeCold, Shard: left.ID, Other: s.ID, Why: "small and cold"}), s.ID
		}
	}
	r.hot, r.cold = hot, cold
	return list
}

// split decides about one shard.
func (r *Reshaper) split(now int64, s *ReshapeShard, cfg *ReshapeConfig, hot map[engine.ShardID]int64) (Reshape, bool) {
	_, resting := r.rest[s.ID]
	if cfg.SplitLoad > 0 && s.Load > cfg.SplitLoad {
		since, ok := r.hot[s.ID]
		if !ok {
			since = now
		}
		hot[s.ID] = since
		if now-since >= cfg.HotMS && !s.Busy && !resting {
			return Reshape{Kind: SplitByLoad, Shard: s.ID, Why: fmt.Sprintf("load: %.0f requests per second", s.Load)}, true
		}
	}
	if cfg.SplitBytes > 0 && s.Bytes > cfg.SplitBytes && !s.Busy && !resting {
		parts := min(max(2, (2*s.Bytes+cfg.SplitBytes-1)/cfg.SplitBytes), splitPartsMax)
		return Reshape{Kind: SplitBySize, Shard: s.ID, Parts: parts, Why: fmt.Sprintf("size: %d MiB", s.Bytes>>20)}, true
	}
	return Reshape{}, false
}

// coldPair tells whether two neighbours are small and cold together, and since when.
func (r *Reshaper) coldPair(now int64, left, right *ReshapeShard, cfg *ReshapeConfig) (since int64, ok bool) {
	if !right.ByAuto || len(left.End) == 0 || !bytes.Equal(left.End, right.Start) {
		return 0, false
	}
	size, load := float64(mergeBytesDefault), float64(mergeLoadDefault)
	if cfg.SplitBytes > 0 {
		size = mergePart * float64(cfg.SplitBytes)
	}
	if cfg.SplitLoad > 0 {
		load = mergePart * cfg.SplitLoad
	}
	if float64(left.Bytes)+float64(right.Bytes) > size || left.Load+right.Load > load {
		return 0, false
	}
	if since, ok = r.cold[right.ID]; !ok {
		since = now
	}
	return since, true
}

// KeyChoice is where a shard should be split by its load.
type KeyChoice struct {
	Key []byte // nil: nowhere
	// Hot is a single key that takes Share of all requests: a split cannot help, for a key cannot be cut.
	Hot   []byte
	Share float64
	// Few: there are not enough samples to say.
	Few bool
}

const (
	samplesMin = 64
	// hotShare of the requests for one key makes it a hot key.
	hotShare = 0.5
	// splitShareMax is the most that the busier side may have of the load: else the split is not worth it. With splitShareGood it is in
	// any case.
	splitShareMax  = 0.8
	splitShareGood = 0.6
)

// ChooseSplitKey finds the key that halves the load of the range [start, end) best, from the keys of recent requests.
func ChooseSplitKey(start, end []byte, samples [][]byte) KeyChoice {
	list := make([][]byte, 0, len(samples))
	for _, k := range samples {
		if bytes.Compare(k, start) >= 0 && (len(end) == 0 || bytes.Compare(k, end) < 0) {
			list = append(list, k)
		}
	}
	if len(list) < samplesMin {
		return KeyChoice{Few: true}
	}
	slices.SortFunc(list, bytes.Compare)
	n := len(list)
	best, bestAt, longest, longestAt := 2*n, 0, 0, 0
	for i := 0; i < n; {
		j := i + 1
		for j < n && bytes.Equal(list[j], list[i]) {
			j++
		}
		if j-i > longest {
			longest, longestAt = j-i, i
		}
		// The split key is the first of the right side: i requests go left.
		if busier := max(i, n-i); i > 0 && busier < best && bytes.Compare(list[i], start) > 0 {
			best, bestAt = busier, i
		}
		i = j
	}
	share, busier := float64(longest)/float64(n), float64(best)/float64(n)
	if bestAt == 0 || busier > splitShareMax || busier > splitShareGood && share >= hotShare {
		return KeyChoice{Hot: list[longestAt], Share: share}
	}
	return KeyChoice{Key: list[bestAt]}
}
