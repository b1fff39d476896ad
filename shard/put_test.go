package shard

import (
	"bytes"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// checkPut compares the short way of decoding with the general one, and tells whether the short one took b.
func checkPut(t *testing.T, b []byte) bool {
	t.Helper()
	short, general := fullWrite(), fullWrite() // reused
	taken := decodePut(b, &short)
	r := mp.NewReader(b)
	decodeWrite(&r, b, &general)
	err := r.Finish()
	if len(general.Conditions) == 0 { // reused or new
		general.Conditions = short.Conditions
	}
	if taken && (err != nil || !reflect.DeepEqual(short, general)) {
		t.Fatalf("% x: %+v; the general way: %v, %+v", b, short, err, general)
	}
	if key := putKey(b); taken && !bytes.Equal(key, short.Ops[0].Key) {
		t.Fatalf("% x: key %q, want %q", b, key, short.Ops[0].Key)
	}
	return taken
}

func TestDecodePut(t *testing.T) {
	sizes := []int{0, 1, 31, 32, 255, 256, 65535, 65536}
	numbers := []uint64{0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000, math.MaxUint32, math.MaxUint32 + 1, math.MaxInt64, math.MaxUint64}
	pick := func(i int) uint64 { return numbers[i%len(numbers)] }
	for i := range len(sizes) * len(numbers) {
		w := Write{Shard: 1, Version: pick(i + 1), Seq: pick(i + 2), Lowest: pick(i + 3),
			Ops: []Op{{Kind: OpPut, Key: make([]byte, sizes[i%len(sizes)]), Value: make([]byte, sizes[i/len(sizes)%len(sizes)]), Expire: int64(pick(i))}}}
		if i%2 == 0 {
			w.Session = NewSessionID(77, 5)
		}
		want := len(w.Ops[0].Key) < 65536 && len(w.Ops[0].Value) < 65536 && w.Ops[0].Expire >= 0
		if b := AppendWrite(nil, &w); checkPut(t, b) != want {
			t.Errorf("%d: taken is %v of a put of %d and %d bytes, expire %d", i, !want, len(w.Ops[0].Key), len(w.Ops[0].Value), w.Ops[0].Expire)
		}
	}
	other := fullWrite()
	if checkPut(t, AppendWrite(nil, &other)) || checkPut(t, nil) {
		t.Error("something else is taken for a put")
	}
}

// What a peer or a damaged log holds may be anything.
func TestDecodePutMutated(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 0))
	w := Write{Shard: 300, Version: 1, Session: NewSessionID(77, 5), Seq: 9, Lowest: 2, Ops: []Op{{Kind: OpPut, Key: []byte("key"), Value: []byte("value")}}}
	b := AppendWrite(nil, &w)
	for i := range b {
		if checkPut(t, b[:i]) {
			t.Fatalf("cut at %d it is still a put", i)
		}
	}
	for range 50_000 {
		m := bytes.Clone(b)
		for range 1 + rng.IntN(3) {
			m[rng.IntN(len(m))] = byte(rng.Uint32())
		}
		checkPut(t, m[:len(m)-rng.IntN(2)])
	}
}

func BenchmarkDecodePut(b *testing.B) {
	w := Write{Shard: 700, Version: 1, Ops: []Op{{Kind: OpPut, Key: make([]byte, 16), Value: make([]byte, 128)}}}
	body := AppendWrite(nil, &w)
	b.ReportAllocs()
	for b.Loop() {
		if err := DecodeWrite(body, &w); err != nil {
			b.Fatal(err)
		}
	}
}

// What AppendWrite makes room for is enough, whatever the numbers: it grows its buffer once.
func TestWriteSizeMax(t *testing.T) {
	most := ^uint64(0)
	long := bytes.Repeat([]byte("x"), 1<<16)
	w := Write{Shard: engine.ShardID(most), Version: most, Session: NewSessionID(1<<62, most), Seq: most, Lowest: most}
	for range 3 {
		w.Ops = append(w.Ops, Op{Kind: OpPut, Key: long, Value: long, Expire: math.MinInt64}, Op{Kind: OpDelete, Key: long},
			Op{Kind: OpDeleteRange, Key: long, End: long, Limit: most}, Op{Kind: OpAdd, Key: long, Delta: math.MinInt64})
		for kind := ConditionExists; kind <= ConditionValue; kind++ {
			w.Conditions = append(w.Conditions, Condition{Kind: kind, Key: long, Version: most, Value: long})
		}
		if n := len(AppendWrite(nil, &w)); n > w.sizeMax() {
			t.Errorf("%d operations, %d conditions: %d bytes, room for %d", len(w.Ops), len(w.Conditions), n, w.sizeMax())
		}
		var bare Write
		bare.Shard, bare.Version, bare.Session, bare.Seq, bare.Lowest = w.Shard, w.Version, w.Session, w.Seq, w.Lowest
		if n := len(AppendWrite(nil, &bare)); n > bare.sizeMax() {
			t.Errorf("no operation: %d bytes, room for %d", n, bare.sizeMax())
		}
		long = nil
	}
}
