package recovery

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// termJump is how far a recovery raises a shard's term above any that a survivor knows: a lost node may have seen later ones, and
// must not win an election, or be followed, by them. It would take as many elections to come near.
const termJump = 1 << 20

// Plan is what a recovery does. It is made from the reports of all survivors, and is JSON, so that it can be carried to each of them.
type Plan struct {
	Format    int         `json:"format"`
	ID        string      `json:"id"` // a hash of the rest
	Cluster   string      `json:"cluster"`
	Lost      []uint64    `json:"lost"`
	Survivors []uint64    `json:"survivors"`
	Shards    []ShardPlan `json:"shards"`    // those that have lost their quorum, by id: the meta shard first
	Gone      []ShardInfo `json:"gone"`      // those of which no survivor holds anything
	Untouched int         `json:"untouched"` // those that have a quorum among the survivors
}

// ShardPlan says how a shard goes on: with one replica, which becomes its only voter.
type ShardPlan struct {
	Shard     uint64     `json:"shard"`
	Before    Descriptor `json:"before"` // as it is once all that is in the log is applied
	After     Descriptor `json:"after"`
	Node      uint64     `json:"node"`
	Replica   uint64     `json:"replica"`
	Applied   Pos        `json:"applied"`
	Committed Pos        `json:"committed"`
	Last      Pos        `json:"last"`
	// FirstLost is the first index possibly lost: from there on there may have been entries that only lost nodes hold.
	FirstLost uint64 `json:"first_possibly_lost"`
	// Undecided entries, at the end of the log, are not known to have been committed. They are kept, and take effect.
	Undecided uint64  `json:"undecided"`
	Term      uint64  `json:"term"` // of the entries that are added
	Entries   []Entry `json:"entries"`
	Others    []Other `json:"others"`
}

// Entry is a log entry that a recovery adds.
type Entry struct {
	Kind    uint8  `json:"kind"`
	Payload []byte `json:"payload"`
}

// Other is another survivor's replica of the shard. It leaves the shard; its entries from CutFrom to CutTo, if there are any, are not in
// the log that goes on, and are salvaged.
type Other struct {
	Node    uint64 `json:"node"`
	Replica uint64 `json:"replica"`
	Last    Pos    `json:"last"`
	CutFrom uint64 `json:"cut_from,omitempty"`
	CutTo   uint64 `json:"cut_to,omitempty"`
}

// candidate is a replica on a survivor.
type candidate struct {
	node uint64
	*Replica
}

// verdict is what was found about a shard.
type verdict struct {
	quorum bool // it goes on by itself
	dead   bool // its neighbour goes on with its keys
	chosen candidate
	others []candidate
}

type planner struct {
	reports  map[uint64]*Report
	lost     map[uint64]bool
	shards   map[uint64][]candidate // initialised replicas
	heirs    map[*Replica][]candidate
	verdicts map[uint64]*verdict
}

// MakePlan makes the plan from the reports of all survivors and the ids of the lost nodes. It refuses what does not fit together, and a
// recovery that is not needed.
func MakePlan(reports []*Report, lost []uint64) (*Plan, error) {
	p := &planner{reports: map[uint64]*Report{}, lost: map[uint64]bool{}, shards: map[uint64][]candidate{}, heirs: map[*Replica][]candidate{},
		verdicts: map[uint64]*verdict{}}
	for _, id := range lost {
		p.lost[id] = true
	}
	if err := p.check(reports); err != nil {
		return nil, err
	}
	p.findHeirs()
	plan := &Plan{Format: Format, Cluster: reports[0].Cluster, Lost: sorted(p.lost), Survivors: slices.Sorted(maps.Keys(p.reports)),
		Shards: []ShardPlan{}, Gone: []ShardInfo{}}
	for _, id := range slices.Sorted(maps.Keys(p.shards)) {
		v, err := p.judge(id)
		switch {
		case err != nil:
			return nil, err
		case v.dead:
		case v.quorum:
			plan.Untouched++
		default:
			sp, err := p.shardPlan(id, v)
			if err != nil {
				return nil, err
			}
			plan.Shards = append(plan.Shards, sp)
		}
	}
	if len(p.shards[metaShard]) == 0 {
		return nil, refuse("no survivor holds a replica of the meta shard (shard %d): without it nobody knows what the cluster is made of", metaShard)
	}
	plan.Gone = p.gone()
	if len(plan.Shards) == 0 && !p.unfinished() {
		return nil, refuse("it is not needed: each of the %d shards has a quorum among the survivors%s", plan.Untouched, goneText(plan.Gone))
	}
	plan.ID = plan.hash()
	return plan, nil
}

// hash is the id of a plan: it tells a plan that was changed on its way.
func (p *Plan) hash() string {
	c := *p
	c.ID = ""
	b, _ := json.Marshal(&c) // of plain values: it does not fail
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}

func goneText(gone []ShardInfo) string {
	if len(gone) == 0 {
		return ""
	}
	return fmt.Sprintf(", but for %d of which nothing is left: no recovery brings them back", len(gone))
}

// judge finds out what becomes of a shard.
func (p *planner) judge(id uint64) (*verdict, error) {
	if v := p.verdicts[id]; v != nil {
		return v, nil
	}
	v := &verdict{}
	p.verdicts[id] = v
	var valid []candidate
	for _, c := range p.shards[id] {
		dead, err := p.isAbsorbed(c)
		if err != nil {
			return nil, err
		}
		if dead {
			v.dead = true
			return v, nil
		}
		ok, err := p.isBorn(c)
		if err != nil {
			return nil, err
		}
		if ok {
			valid = append(valid, c)
		}
	}
	if len(valid) == 0 {
		v.dead = true // the split that makes it was never decided
		return v, nil
	}
	for _, c := range valid {
		if p.hasQuorum(c) {
			v.quorum = true
			return v, nil
		}
	}
	slices.SortFunc(valid, func(a, b candidate) int {
		return cmp.Or(b.Last.compare(a.Last), b.Committed.compare(a.Committed), b.Applied.compare(a.Applied), cmp.Compare(a.node, b.node))
	})
	v.chosen, v.others = valid[0], valid[1:]
	for _, o := range v.others {
		if o.Last == v.chosen.Last && !reflect.DeepEqual(o.Descriptor, v.chosen.Descriptor) {
			return nil, refuse("shard %d: nodes %d and %d have the same log up to %v, but descriptors that differ: one of them is damaged", id, v.chosen.node, o.node, o.Last)
		}
	}
	return v, nil
}

// isAbsorbed tells whether the keys of the replica go on in another shard: one that has, on any survivor, once all that is in its log is
// applied, a higher version and the replica's start in its range (rule Split5). The replica itself need not have heard of that. But it must
// be what goes on of the other shard: the chosen replica, or one that can be elected by its quorum.
func (p *planner) isAbsorbed(c candidate) (bool, error) {
	for _, o := range p.heirs[c.Replica] {
		left, err := p.judge(o.Shard)
		if err != nil {
			return false, err
		}
		if left.dead || left.quorum && p.hasQuorum(o) || !left.quorum && left.chosen.Replica == o.Replica {
			return true, nil
		}
	}
	return false, nil
}

// findHeirs finds, for each replica, those that prove that its shard was absorbed.
func (p *planner) findHeirs() {
	var list, open []candidate // open: those in whose range the walk is
	for id, replicas := range p.shards {
		if id != metaShard {
			list = append(list, replicas...)
		}
	}
	start := func(c candidate) []byte { return c.Descriptor.Start }
	slices.SortFunc(list, func(a, b candidate) int { return bytes.Compare(start(a), start(b)) })
	for len(list) > 0 {
		at, n := start(list[0]), 0
		for n < len(list) && bytes.Equal(start(list[n]), at) {
			n++
		}
		open = append(open, list[:n]...)
		open = slices.DeleteFunc(open, func(o candidate) bool {
			end := o.Descriptor.End
			return len(end) > 0 && bytes.Compare(end, at) <= 0
		})
		for _, c := range list[:n] {
			for _, o := range open {
				if o.Shard != c.Shard && o.Descriptor.Version > c.Descriptor.Version {
					p.heirs[c.Replica] = append(p.heirs[c.Replica], o)
				}
			}
		}
		list = list[n:]
	}
}

// isBorn tells whether the replica exists, or will: one that is only in its parent's log needs that its split takes effect on its node.
func (p *planner) isBorn(c candidate) (bool, error) {
	if c.Born == nil || c.Born.Committed {
		return true, nil
	}
	parent, err := p.judge(c.Born.Parent)
	if err != nil {
		return false, err
	}
	return parent.quorum || parent.chosen.node == c.node, nil
}

// hasQuorum tells whether the survivors can elect the replica, by the newest membership in its log (Raft 5.4.1).
func (p *planner) hasQuorum(c candidate) bool {
	self, votes := Peer{c.node, c.Replica.Replica}, false
	for _, set := range c.Voters {
		alive := 0
		for _, v := range set {
			votes = votes || v == self
			if p.elects(v, c) {
				alive++
			}
		}
		if 2*alive <= len(set) {
			return false
		}
	}
	return votes
}

// elects tells whether a survivor can vote as peer v for c: it has that replica, or may still get it, and no newer log than c.
func (p *planner) elects(v Peer, c candidate) bool {
	r := p.reports[v.Node]
	if r == nil || slices.ContainsFunc(r.Tombstones, func(t Tombstone) bool { return t.Shard == c.Shard && t.Replica >= v.Replica }) {
		return false
	}
	return !slices.ContainsFunc(r.Replicas, func(o Replica) bool {
		return o.Shard == c.Shard && (o.Replica != v.Replica || o.Last.compare(c.Last) > 0)
	})
}

// shardPlan says how a shard without a quorum goes on.
func (p *planner) shardPlan(id uint64, v *verdict) (ShardPlan, error) {
	c := v.chosen
	sp := ShardPlan{Shard: id, Before: c.Descriptor, After: c.Descriptor, Node: c.node, Replica: c.Replica.Replica, Applied: c.Applied, Committed: c.Committed,
		Last: c.Last, FirstLost: c.Last.Index + 1, Undecided: c.Last.Index - min(c.Committed.Index, c.Last.Index), Others: []Other{}}
	for _, r := range p.reports {
		for i := range r.Replicas {
			if o := &r.Replicas[i]; o.Shard == id {
				sp.Term = max(sp.Term, o.Vote.Term+termJump, o.Last.Term+termJump)
			}
		}
	}
	for _, o := range v.others {
		sp.Others = append(sp.Others, cutOff(c, o))
	}
	slices.SortFunc(sp.Others, func(a, b Other) int { return cmp.Compare(a.Node, b.Node) })
	var err error
	sp.Entries, err = p.entries(&sp, c)
	return sp, err
}

// cutOff finds what of o's log is not in the chosen one. What o knows to be committed is in it, for it is the newest that is left; behind
// that they agree up to the last entry that has the same term in both.
func cutOff(chosen, o candidate) Other {
	out := Other{Node: o.node, Replica: o.Replica.Replica, Last: o.Last}
	common := o.Committed.Index
	for i := min(o.Last.Index, chosen.Last.Index); i > max(common, chosen.Purged.Index); i-- {
		if t := o.term(i); t != 0 && t == chosen.term(i) {
			common = i
		}
	}
	if common < o.Last.Index {
		out.CutFrom, out.CutTo = common+1, o.Last.Index
	}
	return out
}

// term returns the term of an entry in the log, 0 if it is not there.
func (r *Replica) term(index uint64) uint64 {
	for _, run := range r.Runs {
		if index >= run.First && index <= run.Last {
			return run.Term
		}
	}
	return 0
}

// gone lists the shards that the meta shard knows and of which no survivor holds anything.
func (p *planner) gone() []ShardInfo {
	out := []ShardInfo{}
	meta := p.shards[metaShard]
	best := slices.MaxFunc(meta, func(a, b candidate) int { return a.Last.compare(b.Last) })
	for _, s := range p.reports[best.node].Meta.Shards {
		left := 0
		for _, m := range s.Replicas {
			if p.reports[m.Node] != nil {
				left++
			}
		}
		if len(p.shards[s.Shard]) > 0 || 2*left > len(s.Replicas) || p.covered(&s) {
			continue
		}
		out = append(out, s)
	}
	return out
}

// covered tells whether a survivor's shard of a higher version owns the keys of s (rule Split5).
func (p *planner) covered(s *ShardInfo) bool {
	for id, list := range p.shards {
		for _, c := range list {
			d := &c.Descriptor
			if id != metaShard && d.Version > s.Version && bytes.Compare(d.Start, s.Start) <= 0 && (len(d.End) == 0 || bytes.Compare(s.Start, d.End) < 0) {
				return true
			}
		}
	}
	return false
}

func sorted(set map[uint64]bool) []uint64 { return slices.Sorted(maps.Keys(set)) }

// Nodes writes node ids for people.
func Nodes(ids []uint64) string {
	text := make([]string, len(ids))
	for i, id := range ids {
		text[i] = fmt.Sprint(id)
	}
	return strings.Join(text, ", ")
}
