package api

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/shard"
)

func samples() []Body {
	d := shard.Descriptor{Shard: 7, Start: []byte("a"), End: []byte("b"), Version: 3, ConfVersion: 4,
		Replicas: []shard.ReplicaDesc{{Replica: 1, Node: 2, Role: shard.RoleVoter}}}
	id := ID{1, 2, 3}
	info := NodeInfo{ClusterID: id, Node: 1, Identity: ID{9}, Name: "n", Addr: "a:1", HTTP: "h", Redis: "r", Version: "v", State: NodeUp,
		Started: 5, Replicas: 6, Leaders: 7, Labels: map[string]string{"zone": "a", "rack": "b"}, Joins: []string{"x:1"}, Reserved: true}
	return []Body{
		&MapRequest{From: []byte("k"), Limit: 3},
		&MapPage{ClusterID: id, Node: 2, Meta: d, Nodes: []NodeAddr{{Node: 1, Addr: "x"}}, Descriptors: []shard.Descriptor{d, d},
			Leaders: []engine.NodeID{1, 2}, More: true, Next: []byte("z")},
		&info, &NodesPage{Nodes: []NodeInfo{info, {}}},
		&ReplicasRequest{From: 1, Limit: 2, Shards: []engine.ShardID{3, 4}},
		&ReplicasPage{Replicas: []ReplicaStatus{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, true, "p"}}, More: true, Next: 9},
		&ShardsRequest{From: []byte("q"), Limit: 9, Shards: []engine.ShardID{1}, Meta: true},
		&ShardsPage{Shards: []ShardInfo{{Descriptor: d, Leader: 1, Keys: 2, Bytes: 3}, {Descriptor: d, Leader: 1, Rates: &Rates{Reads: 1, Writes: 2, Bytes: 3, HotKey: []byte("h"), HotPercent: 4}}}, More: true, Next: []byte("n")},
		&TransferRequest{Shard: 1, To: 2}, &ChecksumRequest{Shard: 3},
		&Checksum{Applied: engine.LogID{Term: 1, Index: 2}, Items: 3, Bytes: 4, Checksum: 5},
		&InitRequest{Shards: 10, Replicas: 3}, &InitAnswer{ClusterID: id, Already: true, Nodes: 3, Shards: 4},
		&Reservation{ClusterID: id, Members: []Member{{Identity: id, Node: 1, Addr: "x"}}, Meta: d, Shards: 1, Replicas: 2, Started: true},
		&JoinRequest{Identity: id, Addr: "a", HTTP: "h", Redis: "r", Name: "n", Labels: map[string]string{"a": "b"}},
		&JoinAnswer{ClusterID: id, Node: 4, Meta: d, Nodes: []NodeAddr{{Node: 1, Addr: "y"}}},
		&OpRequest{Op: []byte("op")}, &OpsRequest{ID: 1, Limit: 2, Running: true}, &OpsPage{Ops: [][]byte{[]byte("a"), []byte("b")}},
		&NodeSetRequest{Node: 1, Action: NodeRemove, Force: true}, &PlanRequest{By: []string{"size"}},
		&Plan{Moves: []PlanMove{{1, 2, 3, true, 4, "w"}}, Bytes: 5, Before: [4]Spread{{1, 2, 3}}, After: [4]Spread{1: {0.5, 1, 0.7}}, Stuck: []string{"s"}},
		&Status{ClusterID: "c", Problems: []string{"p"}, Want: 3, Replicas: 12},
		&UserRequest{Action: UserAdd, Name: "n", Password: []byte("p"), Grants: []auth.Grant{{Role: auth.RoleWrite, Prefix: []byte("x")}}},
		&PasswordRequest{Password: []byte("p")},
		&UsersPage{Users: []UserInfo{{Name: "n", HasPassword: true, Grants: []auth.Grant{{Role: auth.RoleAdmin}}, Created: 1, Updated: 2}}},
		&CreateRequest{Descriptors: []shard.Descriptor{d}, Leaders: []engine.NodeID{2}},
	}
}

func fresh(b Body) Body { return reflect.New(reflect.TypeOf(b).Elem()).Interface().(Body) }

func TestBodiesRoundTrip(t *testing.T) {
	for _, want := range samples() {
		enc := want.Append(nil)
		got := fresh(want)
		if err := Decode(enc, got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%T: %v\n got %+v\nwant %+v", want, err, got, want)
		}
		for i := range enc {
			if err := Decode(enc[:i], fresh(want)); !errors.Is(err, mp.ErrMalformed) || !errors.Is(err, shard.ErrInvalid) {
				t.Errorf("%T cut at %d: %v", want, i, err)
			}
		}
		if err := Decode(append(enc, 0), fresh(want)); err == nil {
			t.Errorf("%T: trailing bytes are accepted", want)
		}
		zero := fresh(want)
		if got := fresh(want); Decode(zero.Append(nil), got) != nil || !reflect.DeepEqual(got, zero) {
			t.Errorf("%T: zero does not round-trip", want)
		}
	}
}

// A newer version may append scalars to a body.
func TestBodiesMayGrow(t *testing.T) {
	enc := (&TransferRequest{Shard: 1, To: 2}).Append(nil)
	enc[0]++
	enc = mp.AppendString(enc, "new")
	var q TransferRequest
	if err := Decode(enc, &q); err != nil || q.To != 2 {
		t.Fatalf("%+v, %v", q, err)
	}
}

func FuzzDecode(f *testing.F) {
	for i, b := range samples() {
		f.Add(uint8(i), b.Append(nil))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		all := samples()
		body := fresh(all[int(which)%len(all)])
		if Decode(b, body) != nil {
			return
		}
		enc := body.Append(nil)
		again := fresh(body)
		if err := Decode(enc, again); err != nil || !bytes.Equal(again.Append(nil), enc) {
			t.Fatalf("%T: %v", body, err)
		}
	})
}

// A status of before the counts were told is read, and seen to have none.
func TestOlderStatus(t *testing.T) {
	old := mp.AppendUint(mp.AppendUint(appendTexts(fields(nil, 3), []string{"p"}), 2), 3)
	var s Status
	if err := Decode(old, &s); err != nil || s.ClusterID != "" || s.Operations.Running != 2 || s.Want != 3 || len(s.Problems) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}
