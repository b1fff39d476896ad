package scheduler

import (
	"context"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// News is what a shard of this node is now: it was asked for something or has changed.
type News struct {
	Shard      engine.ShardID
	Leads      bool              // this node leads it; else nothing of the rest is set
	Descriptor *shard.Descriptor // immutable
	Term       uint64
	Keys       uint64 // estimates of what it holds
	Bytes      uint64
	Load       Load
}

// laneNews is what a lane remembers of requests besides Load, for a few nanoseconds each: who was asked, and now and then for which key,
// which is what split keys are chosen from. It belongs to the lane.
type laneNews struct {
	touched []*replica // asked for something, or changed, since the last News
	skip    uint32     // requests until the next sample
	random  uint32
	samples []loadSample // a ring
	next    int
}

// loadSample is the key of a request. Its buffer is used again.
type loadSample struct {
	shard engine.ShardID
	key   []byte
}

const (
	// loadSamples is how many of the newest samples a lane keeps: a shard that makes up a tenth of its load has a hundred of them.
	loadSamples = 1024
	// loadSkip: one request in about half as many is sampled, after a random distance, for patterns of requests are often periodic.
	loadSkip = 64
)

// touch has the next News look at r.
func (l *Lane) touch(r *replica) {
	if !r.touched {
		r.touched = true
		l.news.touched = append(l.news.touched, r)
	}
}

// noteRequest takes note of a request for a key of r.
func (l *Lane) noteRequest(r *replica, key []byte) {
	l.touch(r)
	if l.news.skip--; l.news.skip == 0 {
		l.news.sample(r.key.Shard, key)
	}
}

func newLaneNews(seed int) laneNews { return laneNews{skip: 1, random: uint32(2*seed + 1)} }

func (d *laneNews) sample(id engine.ShardID, key []byte) {
	d.random ^= d.random << 13
	d.random ^= d.random >> 17
	d.random ^= d.random << 5
	d.skip = 1 + d.random%loadSkip
	if len(d.samples) < loadSamples {
		d.samples = append(d.samples, loadSample{})
	}
	s := &d.samples[d.next%len(d.samples)]
	s.shard, s.key = id, append(s.key[:0], key...)
	d.next = (d.next + 1) % loadSamples
}

// News returns the shards that were asked for something or have changed since it was last called: with all, all that this node leads.
// What it led and leads no more is among them, without Leads. The cost does not depend on shards that nobody touches.
func (s *Scheduler) News(ctx context.Context, all bool) ([]News, error) {
	var out []News
	for _, l := range s.lanes {
		part, err := ask(ctx, s, l, func(l *Lane) []News { return l.takeNews(all) })
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
	}
	return out, nil
}

func (l *Lane) takeNews(all bool) []News {
	var out []News
	for i, r := range l.news.touched {
		l.news.touched[i] = nil
		r.touched = false
		if n := r.newsOf(); !all || !n.Leads {
			out = append(out, n)
		}
	}
	l.news.touched = l.news.touched[:0]
	if all {
		for _, r := range l.list {
			if n := r.newsOf(); n.Leads {
				out = append(out, n)
			}
		}
	}
	return out
}

func (r *replica) newsOf() News {
	n := News{Shard: r.key.Shard}
	if r.removed || r.machine == nil || !r.eng.IsLeader() {
		return n
	}
	n.Leads, n.Descriptor, n.Term, n.Load = true, r.machine.Desc(), r.eng.Status().Vote.Term, r.load
	n.Keys, n.Bytes = r.machine.Estimate()
	return n
}

// LoadSamples returns keys of recent requests for a shard of this node, in no order: as often as they were asked for.
func (s *Scheduler) LoadSamples(ctx context.Context, id engine.ShardID) ([][]byte, error) {
	return ask(ctx, s, s.laneOf(id), func(l *Lane) (keys [][]byte) {
		for i := range l.news.samples {
			if x := &l.news.samples[i]; x.shard == id {
				keys = append(keys, append([]byte(nil), x.key...))
			}
		}
		return keys
	})
}
