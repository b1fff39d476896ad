package placement

import (
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/shard"
)

// AllocOp counts operations.
const AllocOp Alloc = "op"

// PrefixLock is the prefix of locks: a shard or a node that is in an operation names it, so that a second one is refused.
const PrefixLock = "lock/"

// ShardLockKey holds the id of the operation that a shard is in.
func ShardLockKey(id engine.ShardID) []byte { return idKey(PrefixLock+"shard/", uint64(id)) }

// NodeLockKey holds the id of the operation that a node is in.
func NodeLockKey(id engine.NodeID) []byte { return idKey(PrefixLock+"node/", uint64(id)) }

// RebalanceLockKey holds the id of the rebalance that runs.
func RebalanceLockKey() []byte { return []byte(PrefixLock + "rebalance") }

// OpKind tells what an operation does. Stored and sent: never renumber.
type OpKind uint8

// The kinds of operations.
const (
	OpMove      OpKind = 1 // Shard: From → To; From 0: add a voter; To 0: remove one
	OpTransfer  OpKind = 2 // Shard: leadership → To
	OpDrain     OpKind = 3 // node From: leaders, then replicas, move away
	OpRebalance OpKind = 4 // moves and transfers until the cluster is balanced
	OpSplit     OpKind = 5 // Shard at Keys, or into Parts
	OpMerge     OpKind = 6 // Shard absorbs Other
)

// String returns the kind as the command line shows it.
func (k OpKind) String() string {
	names := [...]string{"", "move", "transfer", "drain", "rebalance", "split", "merge"}
	if int(k) < len(names) && k > 0 {
		return names[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// OpKinds returns all kinds.
func OpKinds() []OpKind { return []OpKind{OpMove, OpTransfer, OpDrain, OpRebalance, OpSplit, OpMerge} }

// OpState tells how far an operation is. Stored and sent: never renumber.
type OpState uint8

// The states of operations. All but the first are final.
const (
	OpRunning   OpState = 1
	OpDone      OpState = 2
	OpFailed    OpState = 3
	OpCancelled OpState = 4
)

// String returns the state as the command line shows it.
func (s OpState) String() string {
	names := [...]string{"", "running", "done", "failed", "cancelled"}
	if int(s) < len(names) && s > 0 {
		return names[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Op is the durable record of an operation. It says what is wanted, and by what names; how far it is, is read from the shard itself
// before each step, so that a driver may die anywhere and two drivers do no harm (rule Cluster6).
type Op struct {
	ID     uint64
	Kind   OpKind
	State  OpState
	Parent uint64 // the operation that this one is a part of, 0: none
	Shard  engine.ShardID
	Other  engine.ShardID
	From   engine.NodeID
	To     engine.NodeID
	// FromReplica and Replica are the names of the replicas that goes and that comes.
	FromReplica engine.ReplicaID
	Replica     engine.ReplicaID
	Keys        [][]byte
	Parts       uint64
	By          []string // OpRebalance, see ParseBy
	Cancel      bool     // asked for: a step like others
	Why         string   // who wanted it
	// What follows is for people, and written when it changes noticeably.
	Step       string
	Done       uint64 // of Total steps, shards or replicas
	Total      uint64
	BytesDone  uint64
	BytesTotal uint64
	StartMS    int64 // unix
	UpdateMS   int64
	EndMS      int64
	Reason     string // why it does not advance
	Error      string // why it failed
	// AdvanceMS is when it last came nearer to its end; 0: not yet, or not known.
	AdvanceMS int64
	// Of OpRebalance: how many moves it has ordered, and how many leaderships it has had handed over since no move was left to
	// order, see RebalanceOver. They only grow.
	Moves     uint64
	Transfers uint64
	// OrderedBytes is how much those moves bring to new places.
	OrderedBytes uint64
}

// Bounds of an operation's record.
const (
	OpKeysMax = 4096
	opTextMax = 512
)

// Append encodes the record.
func (o *Op) Append(b []byte) []byte {
	b = mp.AppendArray(b, 26)
	for _, v := range [...]uint64{o.ID, uint64(o.Kind), uint64(o.State), o.Parent, uint64(o.Shard), uint64(o.Other), uint64(o.From), uint64(o.To),
		uint64(o.FromReplica), uint64(o.Replica), o.Parts, o.Done, o.Total, o.BytesDone, o.BytesTotal} {
		b = mp.AppendUint(b, v)
	}
	b = mp.AppendBool(b, o.Cancel)
	for _, v := range [...]int64{o.StartMS, o.UpdateMS, o.EndMS} {
		b = mp.AppendInt(b, v)
	}
	b = mp.AppendArray(b, 4)
	for _, s := range [...]string{o.Why, o.Step, o.Reason, o.Error} {
		b = mp.AppendString(b, s[:min(len(s), opTextMax)])
	}
	b = mp.AppendArray(b, len(o.Keys))
	for _, k := range o.Keys {
		b = mp.AppendBin(b, k)
	}
	b = mp.AppendArray(b, len(o.By))
	for _, s := range o.By {
		b = mp.AppendString(b, s)
	}
	b = mp.AppendUint(mp.AppendUint(mp.AppendInt(b, o.AdvanceMS), o.Moves), o.Transfers)
	return mp.AppendUint(b, o.OrderedBytes)
}

// ReadOp reads a record.
func ReadOp(r *mp.Reader) Op {
	var o Op
	more := r.ArrayMin(22)
	o.ID, o.Kind, o.State, o.Parent = r.Uint(), OpKind(r.Uint()), OpState(r.Uint()), r.Uint()
	o.Shard, o.Other = engine.ShardID(r.Uint()), engine.ShardID(r.Uint())
	o.From, o.To = engine.NodeID(r.Uint()), engine.NodeID(r.Uint())
	o.FromReplica, o.Replica = engine.ReplicaID(r.Uint()), engine.ReplicaID(r.Uint())
	for _, v := range [...]*uint64{&o.Parts, &o.Done, &o.Total, &o.BytesDone, &o.BytesTotal} {
		*v = r.Uint()
	}
	o.Cancel = r.Bool()
	for _, v := range [...]*int64{&o.StartMS, &o.UpdateMS, &o.EndMS} {
		*v = r.Int()
	}
	texts := r.ArrayMin(4)
	for _, s := range [...]*string{&o.Why, &o.Step, &o.Reason, &o.Error} {
		t := r.Bin()
		*s = string(t[:min(len(t), opTextMax)])
	}
	r.Skip(texts)
	n := r.Array()
	if n > OpKeysMax {
		r.Fail("too many keys")
	}
	for ; n > 0 && r.Err() == nil; n-- {
		o.Keys = append(o.Keys, append([]byte(nil), r.Bin()...))
	}
	by := r.Array()
	if by > 16 {
		r.Fail("too much to level")
	}
	for ; by > 0 && r.Err() == nil; by-- {
		o.By = append(o.By, ReadText(r))
	}
	if more >= 3 { // absent in records of older versions
		o.AdvanceMS, o.Moves, o.Transfers = r.Int(), r.Uint(), r.Uint()
		more -= 3
	}
	if more >= 1 { // so is this
		o.OrderedBytes = r.Uint()
		more--
	}
	r.Skip(more)
	return o
}

// DecodeOp decodes a record.
func DecodeOp(b []byte) (Op, error) {
	r := mp.NewReader(b)
	o := ReadOp(&r)
	if err := r.Finish(); err != nil {
		return Op{}, fmt.Errorf("placement: operation: %w", err)
	}
	return o, nil
}

// LeftMS estimates how long the operation still takes, from how long it took so far: by bytes where they are known, as shards differ in size,
// else by steps. 0: there is nothing to go by.
func (o *Op) LeftMS(now int64) int64 {
	took := max(now-o.StartMS, 0)
	switch {
	case o.State != OpRunning:
		return 0
	case o.BytesTotal > 0 && o.BytesDone > 0 && o.BytesDone < o.BytesTotal:
		return int64(float64(took) * float64(o.BytesTotal-o.BytesDone) / float64(o.BytesDone))
	case o.BytesTotal > 0 && o.BytesDone == 0: // nothing has arrived yet: steps would promise too much
		return 0
	case o.Done > 0 && o.Done < o.Total:
		return int64(float64(took) * float64(o.Total-o.Done) / float64(o.Done))
	}
	return 0
}

// Locks returns the keys that an operation holds while it runs: each by one operation at a time.
func (o *Op) Locks() [][]byte {
	switch o.Kind {
	case OpDrain:
		return [][]byte{NodeLockKey(o.From)}
	case OpRebalance:
		return [][]byte{RebalanceLockKey()}
	case OpMerge:
		return [][]byte{ShardLockKey(o.Shard), ShardLockKey(o.Other)}
	}
	return [][]byte{ShardLockKey(o.Shard)}
}

// String says in words what the operation does.
func (o *Op) String() string {
	switch o.Kind {
	case OpMove:
		switch {
		case o.From == 0:
			return fmt.Sprintf("operation %d (add a replica of shard %d on node %d)", o.ID, o.Shard, o.To)
		case o.To == 0:
			return fmt.Sprintf("operation %d (remove the replica of shard %d on node %d)", o.ID, o.Shard, o.From)
		}
		return fmt.Sprintf("operation %d (move shard %d from node %d to node %d)", o.ID, o.Shard, o.From, o.To)
	case OpTransfer:
		return fmt.Sprintf("operation %d (transfer shard %d to node %d)", o.ID, o.Shard, o.To)
	case OpDrain:
		return fmt.Sprintf("operation %d (drain node %d)", o.ID, o.From)
	case OpSplit:
		return fmt.Sprintf("operation %d (split shard %d)", o.ID, o.Shard)
	case OpMerge:
		return fmt.Sprintf("operation %d (merge shards %d and %d)", o.ID, o.Shard, o.Other)
	}
	return fmt.Sprintf("operation %d (%s)", o.ID, o.Kind)
}

// ShardView is what a driver sees of a shard before a step: what its leader says.
type ShardView struct {
	Descriptor *shard.Descriptor
	Leader     engine.NodeID
	Changing   bool // a membership change is in the log and not applied yet
	// Of the replica that comes: whether it follows in step, and how far it is.
	InStep    bool
	State     string // how the leader sends to it
	Match     uint64
	Committed uint64
	Bytes     uint64
	Sent      uint64 // bytes of the snapshot under way
	Note      string // why the last snapshot was not sent; may be empty
	// Up tells whether a node is alive, Gone whether it was removed for good, and Avoid whether it should not be made a leader.
	Up    func(engine.NodeID) bool
	Gone  func(engine.NodeID) bool
	Avoid func(engine.NodeID) bool
}

// ActionKind tells what a driver does next.
type ActionKind uint8

// The actions.
const (
	ActWait     ActionKind = iota // nothing, for Reason
	ActChange                     // propose Replicas at the descriptor's exact versions
	ActTransfer                   // hand the leadership to node To
	ActRemove                     // have node To destroy Replica, with the descriptor as proof
	ActDone                       // done; also cancelled, see Cancelled
	ActFail                       // for Reason
)

// Action is one step.
type Action struct {
	Kind      ActionKind
	Replicas  []shard.ReplicaDesc
	To        engine.NodeID
	Replica   engine.ReplicaID
	Step      string
	Done      uint64 // steps that lie behind
	Reason    string
	Cancelled bool
}

// The steps of a move.
const (
	StepAdd      = "add a learner"
	StepCatchUp  = "catch up"
	StepTransfer = "transfer the leadership"
	StepJoint    = "change the voters"
	StepRemove   = "remove the old replica"
	moveSteps    = 4
)

// Next returns the next step of a move or transfer. It depends on nothing but what is wanted and what is: a step that was done is
// not seen any more, and one that was made for an older descriptor is void (rule Cluster6).
func (o *Op) Next(v *ShardView) Action {
	o.Total = max(o.Total, 1)
	if o.Kind == OpTransfer {
		return o.nextTransfer(v)
	}
	o.Total = moveSteps
	if v.Changing || MembershipJoint(v.Descriptor) {
		return Action{Kind: ActWait, Step: StepJoint, Done: 2, Reason: "a membership change is being committed"}
	}
	comes, there := v.Descriptor.Replica(o.Replica)
	goes, staying := v.Descriptor.Replica(o.FromReplica)
	switch {
	case o.To != 0 && there && comes.Role == shard.RoleLearner:
		return o.nextLearner(v, &goes, staying)
	case o.To != 0 && there && !staying, o.To == 0 && !staying:
		return o.nextRemove()
	case o.To != 0 && there: // both vote: somebody else has changed the membership in between
		return Action{Kind: ActChange, Step: StepJoint, Done: 2, Replicas: without(v.Descriptor, o.FromReplica)}
	case o.Cancel:
		return Action{Kind: ActDone, Cancelled: true}
	case o.gone(v):
		return Action{Kind: ActFail, Reason: fmt.Sprintf("node %d was removed from the cluster", o.To)}
	case o.From != 0 && !staying:
		return Action{Kind: ActFail, Reason: fmt.Sprintf("node %d does not hold replica %d of shard %d any more", o.From, o.FromReplica, o.Shard)}
	case o.To == 0:
		return o.nextLeave(v, &goes)
	}
	if r, ok := v.Descriptor.OnNode(o.To); ok {
		return Action{Kind: ActFail, Reason: fmt.Sprintf("node %d holds replica %d of shard %d already", o.To, r.Replica, o.Shard)}
	}
	if !v.Up(o.To) {
		return Action{Kind: ActWait, Step: StepAdd, Reason: fmt.Sprintf("node %d is down", o.To)}
	}
	list := append(without(v.Descriptor, 0), shard.ReplicaDesc{Replica: o.Replica, Node: o.To, Role: shard.RoleLearner})
	return Action{Kind: ActChange, Step: StepAdd, Replicas: list}
}

// gone tells whether the node that is to get a replica was removed from the cluster meanwhile: it never comes back.
func (o *Op) gone(v *ShardView) bool { return o.To != 0 && v.Gone != nil && v.Gone(o.To) }

// nextLearner: the new replica is a learner.
func (o *Op) nextLearner(v *ShardView, goes *shard.ReplicaDesc, staying bool) Action {
	switch {
	case o.Cancel, o.gone(v):
		return Action{Kind: ActChange, Step: "cancel: remove the learner", Done: 1, Replicas: without(v.Descriptor, o.Replica)}
	case !v.Up(o.To):
		return Action{Kind: ActWait, Step: StepCatchUp, Done: 1, Reason: fmt.Sprintf("node %d is down", o.To)}
	case !v.InStep:
		return Action{Kind: ActWait, Step: StepCatchUp, Done: 1, Reason: o.catchUp(v)}
	}
	if staying && v.Leader == goes.Node {
		if to := successor(v, goes.Node); to != 0 {
			return Action{Kind: ActTransfer, Step: StepTransfer, Done: 2, To: to}
		}
	}
	list := without(v.Descriptor, o.FromReplica)
	for i := range list {
		if list[i].Replica == o.Replica {
			list[i].Role = shard.RoleVoter
		}
	}
	return Action{Kind: ActChange, Step: StepJoint, Done: 2, Replicas: list}
}

// catchUp says in words what a learner waits for.
func (o *Op) catchUp(v *ShardView) string {
	switch {
	case v.Sent > 0:
		return fmt.Sprintf("the replica on node %d catches up by a snapshot: %d KiB sent, the shard holds about %d KiB", o.To, v.Sent>>10, v.Bytes>>10)
	case v.Note != "":
		return fmt.Sprintf("the replica on node %d catches up: %s", o.To, v.Note)
	}
	return fmt.Sprintf("the replica on node %d catches up (%s): entry %d of %d", o.To, v.State, v.Match, v.Committed)
}

// nextLeave removes a voter without a successor.
func (o *Op) nextLeave(v *ShardView, goes *shard.ReplicaDesc) Action {
	if len(voters(v.Descriptor)) == 1 && goes.Role == shard.RoleVoter {
		return Action{Kind: ActFail, Reason: "it is the last voter of the shard"}
	}
	if v.Leader == goes.Node {
		if to := successor(v, goes.Node); to != 0 {
			return Action{Kind: ActTransfer, Step: StepTransfer, Done: 2, To: to}
		}
	}
	return Action{Kind: ActChange, Step: StepJoint, Done: 2, Replicas: without(v.Descriptor, o.FromReplica)}
}

// nextRemove: the descriptor does not name the old replica any more.
func (o *Op) nextRemove() Action {
	if o.From == 0 {
		return Action{Kind: ActDone, Done: moveSteps}
	}
	return Action{Kind: ActRemove, Step: StepRemove, Done: 3, To: o.From, Replica: o.FromReplica}
}

func (o *Op) nextTransfer(v *ShardView) Action {
	r, ok := v.Descriptor.OnNode(o.To)
	switch {
	case v.Leader == o.To:
		return Action{Kind: ActDone, Done: 1}
	case o.Cancel:
		return Action{Kind: ActDone, Cancelled: true}
	case !ok || r.Role != shard.RoleVoter && r.Role != shard.RoleIncoming:
		return Action{Kind: ActFail, Reason: fmt.Sprintf("node %d holds no voter of shard %d", o.To, o.Shard)}
	case !v.Up(o.To):
		return Action{Kind: ActFail, Reason: fmt.Sprintf("node %d is down", o.To)}
	}
	return Action{Kind: ActTransfer, Step: StepTransfer, To: o.To}
}

// MembershipJoint tells whether a descriptor is in the middle of a change.
func MembershipJoint(d *shard.Descriptor) bool {
	for _, r := range d.Replicas {
		if r.Role != shard.RoleVoter && r.Role != shard.RoleLearner {
			return true
		}
	}
	return false
}

// without returns the replicas but one.
func without(d *shard.Descriptor, id engine.ReplicaID) []shard.ReplicaDesc {
	list := make([]shard.ReplicaDesc, 0, len(d.Replicas)+1)
	for _, r := range d.Replicas {
		if r.Replica != id {
			list = append(list, r)
		}
	}
	return list
}

func voters(d *shard.Descriptor) []shard.ReplicaDesc {
	var list []shard.ReplicaDesc
	for _, r := range d.Replicas {
		if r.Role == shard.RoleVoter {
			list = append(list, r)
		}
	}
	return list
}

// successor picks who leads when the replica on node goes: a voter that is alive, rather one that may keep the office. 0: nobody.
func successor(v *ShardView, node engine.NodeID) engine.NodeID {
	list := voters(v.Descriptor)
	for _, avoid := range [...]bool{true, false} {
		for i := range list {
			r := list[(i+int(v.Descriptor.Shard))%len(list)]
			if r.Node != node && v.Up(r.Node) && !(avoid && v.Avoid != nil && v.Avoid(r.Node)) {
				return r.Node
			}
		}
	}
	return 0
}
