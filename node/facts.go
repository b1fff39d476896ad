package node

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

// factStore is where facts are kept: the state's store. NodePut is durable when it returns.
type factStore interface {
	NodeGet(key string) ([]byte, error)
	NodePut(key string, value []byte) error
}

// The keys of the facts. They are a format.
const (
	factIdentity     = "identity"     // 16 random bytes, made at the first start (rule Cluster7)
	factIncarnations = "incarnations" // nonces of the starts, newest last (rule Cluster9)
	factShown        = "shown"        // the nonce of the last start that others may have heard of; absent in older directories
	factReservation  = "reservation"  // what this node has promised to become (rule Cluster7)
	factStarted      = "started"      // [cluster, node]: what it has become; never changes
	factMeta         = "meta"         // last descriptor of the meta shard that was seen
	factPeer         = "peer/"        // + node id: [incarnation, identity, address]
	factNodes        = "nodes"        // [node, address, …] as last read from meta
	factRefused      = "refused"      // why this node may not go on (rule Cluster9)
	factLost         = "lost"         // [node …]: given up by a recovery of last resort; they must not come back
	factRecovering   = "recovering"   // the plan of a recovery that was begun in this directory and is not finished
	factMet          = "met"          // [node, incarnation …]: the newest start of this node that each peer is known to know
)

// incarnationsMax is how many of its starts a node keeps in mind: the newest half in any case, and of the older ones rather those that a
// peer is known to know.
const incarnationsMax = 64

// facts are what a node knows durably about itself and its peers. All methods may be called from any goroutine.
type facts struct {
	mu           sync.Mutex
	store        factStore
	identity     id128
	incarnations []uint64
	started      *startedFact
	reservation  *reservation
	meta         *shard.Descriptor
	nodes        []byte // encoded factNodes
	peers        map[engine.NodeID]peerFact
	met          map[engine.NodeID]uint64
	lost         []engine.NodeID // does not change while the node runs
}

// id128 is the identity of a node or the id of a cluster.
type id128 = [16]byte

type startedFact struct {
	Cluster id128
	Node    engine.NodeID
}

// peerFact is what is kept of a peer: the newest incarnation that was accepted, and where it is.
type peerFact struct {
	Incarnation uint64
	Identity    id128
	Addr        string
}

// loadFacts reads the facts, makes an identity if there is none, and adds the incarnation of this start.
func loadFacts(store factStore) (*facts, error) {
	f := &facts{store: store, peers: map[engine.NodeID]peerFact{}, met: map[engine.NodeID]uint64{}}
	for _, step := range []func() error{f.loadIdentity, f.loadLost, f.loadMet, f.loadIncarnations, f.loadMembership, f.loadHints} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("node: facts: %w", err)
		}
	}
	return f, nil
}

func (f *facts) loadIdentity() error {
	b, err := f.store.NodeGet(factIdentity)
	switch {
	case err != nil:
		return err
	case len(b) == 0:
		_, _ = rand.Read(f.identity[:])
		return f.store.NodePut(factIdentity, f.identity[:])
	case len(b) != len(f.identity):
		return fmt.Errorf("identity of %d bytes", len(b))
	}
	copy(f.identity[:], b)
	return nil
}

// loadIncarnations adds the random nonce of this start to the list, durably, before anyone hears of it (rule Cluster9). It takes the
// place of one that nobody can have heard of: else a node whose start fails again and again, and is tried again each second, would push
// the nonce that its peers know out of the list, and be taken for a copy for good.
func (f *facts) loadIncarnations() error {
	b, err := f.store.NodeGet(factIncarnations)
	if err != nil {
		return err
	}
	if len(b) > 0 {
		r := mp.NewReader(b)
		for range r.Array() {
			f.incarnations = append(f.incarnations, r.Uint())
		}
		if err := r.Finish(); err != nil {
			return fmt.Errorf("incarnations: %w", err)
		}
	}
	shown, err := f.store.NodeGet(factShown)
	switch n := len(f.incarnations); {
	case err != nil:
		return err
	case n == 0:
		if err := f.store.NodePut(factShown, make([]byte, 8)); err != nil {
			return err
		}
	case len(shown) == 8 && binary.BigEndian.Uint64(shown) != f.incarnations[n-1]:
		f.incarnations = f.incarnations[:n-1]
	}
	var nonce [8]byte
	_, _ = rand.Read(nonce[:])
	f.incarnations = append(f.incarnations, max(1, binary.LittleEndian.Uint64(nonce[:])))
	f.trimIncarnations()
	b = mp.AppendArray(nil, len(f.incarnations))
	for _, n := range f.incarnations {
		b = mp.AppendUint(b, n)
	}
	return f.store.NodePut(factIncarnations, b)
}

// trimIncarnations forgets old starts. A peer that was down for long has missed all that came since it met this node last: it will ask for
// the start that it knows, however many there were, and refuse this node for good without it (rule Cluster9).
func (f *facts) trimIncarnations() {
	known := map[uint64]bool{}
	for _, n := range f.met {
		known[n] = true
	}
	for len(f.incarnations) > incarnationsMax {
		older := f.incarnations[:len(f.incarnations)-incarnationsMax/2]
		i := max(0, slices.IndexFunc(older, func(n uint64) bool { return !known[n] }))
		f.incarnations = slices.Delete(f.incarnations, i, i+1)
	}
}

func (f *facts) loadMet() error {
	b, err := f.store.NodeGet(factMet)
	if err != nil || len(b) == 0 {
		return err
	}
	r := mp.NewReader(b)
	for n := r.Array(); n > 1 && r.Err() == nil; n -= 2 {
		id := engine.NodeID(r.Uint())
		f.met[id] = r.Uint()
	}
	if err := r.Finish(); err != nil {
		return fmt.Errorf("starts that peers know: %w", err)
	}
	return nil
}

// metBy notes that a peer knows of this start: it has answered what this process sent.
func (f *facts) metBy(id engine.NodeID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.incarnations[len(f.incarnations)-1]
	if f.met[id] == now {
		return nil
	}
	f.met[id] = now
	b := mp.AppendArray(nil, 2*len(f.met))
	for _, id := range slices.Sorted(maps.Keys(f.met)) {
		b = mp.AppendUint(mp.AppendUint(b, uint64(id)), f.met[id])
	}
	return f.store.NodePut(factMet, b)
}

// show must be called before anybody can hear of this start.
func (f *facts) show() error {
	last := f.incarnations[len(f.incarnations)-1]
	if err := f.store.NodePut(factShown, binary.BigEndian.AppendUint64(nil, last)); err != nil {
		return fmt.Errorf("node: facts: %w", err)
	}
	return nil
}

func (f *facts) loadMembership() error {
	b, err := f.store.NodeGet(factReservation)
	if err != nil {
		return err
	}
	if len(b) > 0 {
		r, err := decodeReservation(b)
		if err != nil {
			return err
		}
		f.reservation = &r
	}
	b, err = f.store.NodeGet(factStarted)
	if err != nil || len(b) == 0 {
		return err
	}
	r := mp.NewReader(b)
	var s startedFact
	more := r.ArrayMin(2)
	readID(&r, &s.Cluster)
	s.Node = engine.NodeID(r.Uint())
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return fmt.Errorf("started: %w", err)
	}
	f.started = &s
	return nil
}

func (f *facts) loadHints() error {
	var err error
	if f.nodes, err = f.store.NodeGet(factNodes); err != nil {
		return err
	}
	b, err := f.store.NodeGet(factMeta)
	if err != nil || len(b) == 0 {
		return err
	}
	d, err := shard.DecodeDescriptor(b)
	if err != nil {
		return fmt.Errorf("meta descriptor: %w", err)
	}
	f.meta = &d
	return nil
}

// reserve stores r unless there is a reservation already, and returns what is held (rule Cluster7: never overwritten).
func (f *facts) reserve(r *reservation) (*reservation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reservation != nil {
		return f.reservation, nil
	}
	if err := f.store.NodePut(factReservation, r.append(nil)); err != nil {
		return nil, err
	}
	f.reservation = r
	return r, nil
}

// dropReservation forgets a reservation that can never be started, because one of its members has started in another cluster.
func (f *facts) dropReservation(cluster id128) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.started != nil || f.reservation == nil || f.reservation.Cluster != cluster {
		return nil
	}
	if err := f.store.NodePut(factReservation, nil); err != nil {
		return err
	}
	f.reservation = nil
	return nil
}

// start stores that this node is a member of a cluster. It never changes afterwards.
func (f *facts) start(s startedFact) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.started != nil {
		if *f.started != s {
			return fmt.Errorf("%w: this node is node %d of cluster %s", ErrOtherCluster, f.started.Node, idText(f.started.Cluster))
		}
		return nil
	}
	b := mp.AppendBin(mp.AppendArray(nil, 2), s.Cluster[:])
	if err := f.store.NodePut(factStarted, mp.AppendUint(b, uint64(s.Node))); err != nil {
		return err
	}
	f.started = &s
	return nil
}

// membership returns the started fact and the reservation; either may be nil.
func (f *facts) membership() (*startedFact, *reservation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.started, f.reservation
}

// metaDescriptor returns the newest descriptor of the meta shard that this node has seen, nil if none.
func (f *facts) metaDescriptor() *shard.Descriptor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.meta
}

// sawMeta keeps d if it is newer (DESIGN 9: every node hands the last meta descriptor to whoever asks).
func (f *facts) sawMeta(d *shard.Descriptor) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d.Shard != shard.MetaShardID || f.meta != nil && !d.Newer(f.meta) {
		return nil
	}
	d = d.Clone()
	if err := f.store.NodePut(factMeta, shard.AppendDescriptor(nil, d)); err != nil {
		return err
	}
	f.meta = d
	return nil
}

// peer returns what is kept of a peer.
func (f *facts) peer(id engine.NodeID) (peerFact, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.peerLocked(id)
}

func (f *facts) peerLocked(id engine.NodeID) (peerFact, error) {
	if p, ok := f.peers[id]; ok {
		return p, nil
	}
	b, err := f.store.NodeGet(peerKey(id))
	if err != nil || len(b) == 0 {
		return peerFact{}, err
	}
	r := mp.NewReader(b)
	more := r.ArrayMin(3)
	p := peerFact{Incarnation: r.Uint()}
	readID(&r, &p.Identity)
	p.Addr = r.String()
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return peerFact{}, fmt.Errorf("peer %d: %w", id, err)
	}
	f.peers[id] = p
	return p, nil
}

// sawPeer keeps what a peer's handshake said, if it differs.
func (f *facts) sawPeer(id engine.NodeID, p peerFact) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, err := f.peerLocked(id); err != nil || old == p {
		return err
	}
	b := mp.AppendUint(mp.AppendArray(nil, 3), p.Incarnation)
	b = mp.AppendString(mp.AppendBin(b, p.Identity[:]), p.Addr)
	if err := f.store.NodePut(peerKey(id), b); err != nil {
		return err
	}
	f.peers[id] = p
	return nil
}

// nodeAddrs returns the addresses of the nodes as last read from meta.
func (f *facts) nodeAddrs() map[engine.NodeID]string {
	addrs := map[engine.NodeID]string{}
	f.mu.Lock()
	defer f.mu.Unlock()
	r := mp.NewReader(f.nodes)
	if len(f.nodes) == 0 {
		return addrs
	}
	for n := r.Array(); n > 1 && r.Err() == nil; n -= 2 {
		id := engine.NodeID(r.Uint())
		addrs[id] = r.String()
	}
	return addrs
}

// sawNodes keeps the addresses of all nodes, so that a restarted node finds its peers.
func (f *facts) sawNodes(list []placement.NodeRecord) error {
	b := mp.AppendArray(nil, 2*len(list))
	for _, n := range list {
		b = mp.AppendString(mp.AppendUint(b, uint64(n.ID)), n.Addr)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if bytes.Equal(b, f.nodes) {
		return nil
	}
	if err := f.store.NodePut(factNodes, b); err != nil {
		return err
	}
	f.nodes = b
	return nil
}

func peerKey(id engine.NodeID) string { return fmt.Sprintf("%s%016x", factPeer, uint64(id)) }

func idText(id id128) string { return fmt.Sprintf("%x", id[:]) }

func compareID(a, b id128) int { return bytes.Compare(a[:], b[:]) }
