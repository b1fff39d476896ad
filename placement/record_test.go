package placement

import (
	"reflect"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

func TestRecordsRoundTrip(t *testing.T) {
	c := ClusterRecord{ID: [16]byte{1, 15: 9}, Version: 1, State: ClusterReady, CreateMS: 1e12, Shards: 1000, Replicas: 3,
		FirstShard: 2, FirstReplica: 4, Nodes: []engine.NodeID{1, 2, 3}}
	got, err := DecodeCluster(c.Append(nil))
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("cluster: %+v, %v", got, err)
	}
	n := NodeRecord{ID: 7, Identity: [16]byte{3}, Name: "n7", Addr: "h:1", HTTP: "h:2", State: NodeUp, Labels: map[string]string{"zone": "a", "b": ""}}
	gotNode, err := DecodeNode(n.Append(nil))
	if err != nil || !reflect.DeepEqual(gotNode, n) {
		t.Errorf("node: %+v, %v", gotNode, err)
	}
	if id, err := DecodeNextID(AppendNextID(nil, 77)); id != 77 || err != nil {
		t.Error(id, err)
	}
	if by, v, err := DecodeDead(AppendDead(nil, 3, 2, 9)); by != 2 || v != 9 || err != nil {
		t.Error(by, v, err)
	}
	if id, err := DecodeNextID(nil); id != 1 || err != nil {
		t.Error(id, err)
	}
}

// A record with a field more, as a newer version writes it, is read; a cut one is not.
func TestRecordsAddAndCut(t *testing.T) {
	c := ClusterRecord{State: ClusterReady, Nodes: []engine.NodeID{1}}
	b := c.Append(nil)
	more := mp.AppendString(append(mp.AppendArray(nil, 10), b[1:]...), "new")
	if _, err := DecodeCluster(more); err != nil {
		t.Error(err)
	}
	for i := range b {
		if _, err := DecodeCluster(b[:i]); err == nil {
			t.Errorf("cut at %d: no error", i)
		}
	}
}

func TestKeys(t *testing.T) {
	id, err := KeyID(PrefixShard, ShardKey(255))
	if id != 255 || err != nil {
		t.Error(id, err)
	}
	for _, bad := range []string{"shard/", "shard/zzzzzzzzzzzzzzzz", "node/00000000000000ff", "shard/00000000000000ff0"} {
		if _, err := KeyID(PrefixShard, []byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if e := PrefixEnd(PrefixShard); string(e) != "shard0" {
		t.Errorf("%q", e)
	}
}

func TestShardRecordRoundTrip(t *testing.T) {
	plan, err := PlanInitial(Initial{Nodes: nodes(3), Shards: 4, Replicas: 3, FirstShard: 2, FirstReplica: 4})
	if err != nil {
		t.Fatal(err)
	}
	rec := plan[1].Record()
	if err := rec.Descriptor.Validate(); err != nil {
		t.Error(err)
	}
	got, err := DecodeShard(rec.Append(nil))
	if err != nil || !reflect.DeepEqual(got, rec) || got.Leader != plan[1].Replicas[0].Node {
		t.Errorf("%+v, %v", got, err)
	}
}
