package placement

import (
	"bytes"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
)

// FuzzRecords reads anything as each of the records of the meta shard: what is accepted is written and read back the same.
func FuzzRecords(f *testing.F) {
	c := ClusterRecord{ID: [16]byte{1, 15: 9}, Version: 1, State: ClusterReady, CreateMS: 1e12, Shards: 1000, Replicas: 3, FirstShard: 2,
		FirstReplica: 4, Nodes: []engine.NodeID{1, 2, 3}}
	n := NodeRecord{ID: 7, Identity: [16]byte{3}, Name: "n7", Addr: "h:1", HTTP: "h:2", State: NodeUp, Labels: map[string]string{"zone": "a"}}
	f.Add(uint8(0), c.Append(nil))
	f.Add(uint8(1), n.Append(nil))
	f.Add(uint8(2), (&ShardRecord{}).Append(nil))
	f.Add(uint8(3), (&Op{ID: 1, Shard: 2}).Append(nil))
	f.Add(uint8(4), (&UserRecord{CreateMS: 1}).Append(nil))
	f.Add(uint8(5), (&Problem{Name: "p"}).Append(nil))
	f.Add(uint8(6), AppendNextID(nil, 77))
	f.Add(uint8(7), AppendDead(nil, 3, 2, 9))
	read := []func(b []byte) ([]byte, error){
		func(b []byte) ([]byte, error) { r, err := DecodeCluster(b); return r.Append(nil), err },
		func(b []byte) ([]byte, error) { r, err := DecodeNode(b); return r.Append(nil), err },
		func(b []byte) ([]byte, error) { r, err := DecodeShard(b); return r.Append(nil), err },
		func(b []byte) ([]byte, error) { r, err := DecodeOp(b); return r.Append(nil), err },
		func(b []byte) ([]byte, error) { r, err := DecodeUser(b); return r.Append(nil), err },
		func(b []byte) ([]byte, error) { r, err := DecodeProblem(b); return r.Append(nil), err },
		func(b []byte) ([]byte, error) { r, err := DecodeNextID(b); return AppendNextID(nil, r), err },
		func(b []byte) ([]byte, error) { by, v, err := DecodeDead(b); return AppendDead(nil, 3, by, v), err },
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		read := read[int(which)%len(read)]
		enc, err := read(b)
		if err != nil {
			return
		}
		if again, err := read(enc); err != nil || !bytes.Equal(again, enc) {
			t.Fatalf("%d: %x is read, written as %x and read back as %x, %v", which, b, enc, again, err)
		}
	})
}
