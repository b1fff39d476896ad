package state

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/store"
)

// The on-disk encodings; docs/state.md describes them.

// recordVersion begins every record.
const recordVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const crcBytes = 4

// itemOverhead bounds what an encoded item has beside its value.
const itemOverhead = crcBytes + 2*binary.MaxVarintLen64

// itemCodec encodes and decodes items. It is a value with a place of its own because what is given to crc32 escapes.
type itemCodec struct{ head [12]byte }

// sum is the checksum of an item (rule State5): it names the place, so an item that was moved to another key or tablet is
// found too.
func (c *itemCodec) sum(t TabletID, key, rest []byte) uint32 {
	binary.LittleEndian.PutUint64(c.head[:], uint64(t))
	binary.LittleEndian.PutUint32(c.head[8:], uint32(len(key)))
	sum := crc32.Update(0, castagnoli, c.head[:])
	sum = crc32.Update(sum, castagnoli, key)
	return crc32.Update(sum, castagnoli, rest)
}

// append appends what is stored in tablet t at key: checksum, version, expiry, value.
func (c *itemCodec) append(b []byte, t TabletID, key []byte, it Item) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.AppendUvarint(b, it.Version)
	b = binary.AppendVarint(b, it.Expire)
	b = append(b, it.Value...)
	binary.LittleEndian.PutUint32(b[at:], c.sum(t, key, b[at+crcBytes:]))
	return b
}

// read decodes what is stored in tablet t at key. The value aliases b.
func (c *itemCodec) read(t TabletID, key, b []byte) (Item, error) {
	if len(b) < crcBytes {
		return Item{}, corruptItem(t, key, "short item")
	}
	rest := b[crcBytes:]
	if binary.LittleEndian.Uint32(b) != c.sum(t, key, rest) {
		return Item{}, corruptItem(t, key, "checksum mismatch")
	}
	version, n := binary.Uvarint(rest)
	if n <= 0 {
		return Item{}, corruptItem(t, key, "malformed version")
	}
	expire, m := binary.Varint(rest[n:])
	if m <= 0 {
		return Item{}, corruptItem(t, key, "malformed expiry")
	}
	return Item{Version: version, Expire: expire, Value: rest[n+m:]}, nil
}

func corruptItem(t TabletID, key []byte, what string) error {
	return &CorruptError{Tablet: t, Key: bytes.Clone(key), What: what}
}

// seal puts the checksum over space, key and value in front of value: the form of everything that is not an item.
func seal(s space, key, value []byte) []byte {
	b := make([]byte, crcBytes, crcBytes+len(value))
	b = append(b, value...)
	binary.LittleEndian.PutUint32(b, sealSum(s, key, value))
	return b
}

func sealSum(s space, key, value []byte) uint32 {
	var head [5]byte
	head[0] = byte(s)
	binary.LittleEndian.PutUint32(head[1:], uint32(len(key)))
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, key)
	return crc32.Update(sum, castagnoli, value)
}

// unseal checks what seal made and returns the value, which aliases b.
func unseal(s space, key, b []byte) ([]byte, error) {
	if len(b) < crcBytes || binary.LittleEndian.Uint32(b) != sealSum(s, key, b[crcBytes:]) {
		return nil, &CorruptError{Key: bytes.Clone(key), What: "checksum mismatch in bucket " + string(rune(s))}
	}
	return b[crcBytes:], nil
}

// appendHead appends all of the record but Key and Meta. What a read job compares comes first.
func appendHead(b []byte, r *Record) []byte {
	b = mp.AppendArray(b, 7)
	b = mp.AppendUint(b, recordVersion)
	b = mp.AppendUint(b, r.Applied.Term)
	b = mp.AppendUint(b, r.Applied.Index)
	b = mp.AppendArray(b, 3*len(r.Extents))
	for _, e := range r.Extents {
		b = mp.AppendBin(b, e.Start)
		b = mp.AppendBin(b, e.End)
		b = mp.AppendUint(b, uint64(e.Tablet))
	}
	b = mp.AppendBool(b, r.Tombstone)
	b = appendMembership(b, &r.Membership)
	return appendMembership(b, &r.Previous)
}

// readHead is the reverse of appendHead; it copies.
func readHead(m *mp.Reader, r *Record) {
	n := m.ArrayMin(7)
	if v := m.Uint(); v != recordVersion && m.Err() == nil {
		m.Fail("record version")
	}
	r.Applied.Term = m.Uint()
	r.Applied.Index = m.Uint()
	count := m.Array()
	r.Extents = nil
	for i := 0; i+3 <= count && m.Err() == nil; i += 3 {
		e := Extent{Start: cloneKey(m.Bin()), End: cloneKey(m.Bin())}
		e.Tablet = TabletID(m.Uint())
		r.Extents = append(r.Extents, e)
	}
	if count%3 != 0 {
		m.Fail("extents")
	}
	r.Tombstone = m.Bool()
	r.Membership = readMembership(m)
	r.Previous = readMembership(m)
	m.Skip(n - 7)
}

// cloneKey copies a bound of a range; an empty one is nil.
func cloneKey(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return bytes.Clone(b)
}

func appendPeers(b []byte, peers []engine.Peer) []byte {
	b = mp.AppendArray(b, 2*len(peers))
	for _, p := range peers {
		b = mp.AppendUint(b, uint64(p.Node))
		b = mp.AppendUint(b, uint64(p.Replica))
	}
	return b
}

func readPeers(m *mp.Reader) []engine.Peer {
	n := m.Array()
	if n%2 != 0 {
		m.Fail("peers")
	}
	var peers []engine.Peer
	for i := 0; i+2 <= n && m.Err() == nil; i += 2 {
		p := engine.Peer{Node: engine.NodeID(m.Uint())}
		p.Replica = engine.ReplicaID(m.Uint())
		peers = append(peers, p)
	}
	return peers
}

func appendMembership(b []byte, at *engine.MembershipAt) []byte {
	if at.Membership == nil {
		return mp.AppendNil(b)
	}
	b = mp.AppendArray(b, 4)
	b = mp.AppendUint(b, at.LogID.Term)
	b = mp.AppendUint(b, at.LogID.Index)
	b = mp.AppendArray(b, len(at.Membership.Voters))
	for _, set := range at.Membership.Voters {
		b = appendPeers(b, set)
	}
	return appendPeers(b, at.Membership.Learners)
}

func readMembership(m *mp.Reader) engine.MembershipAt {
	var at engine.MembershipAt
	if m.Nil() {
		return at
	}
	m.ArrayOf(4)
	at.LogID.Term = m.Uint()
	at.LogID.Index = m.Uint()
	at.Membership = &engine.Membership{}
	n := m.Array()
	for i := 0; i < n && m.Err() == nil; i++ {
		at.Membership.Voters = append(at.Membership.Voters, readPeers(m))
	}
	at.Membership.Learners = readPeers(m)
	return at
}

// AppendRecord appends a form of the record that another node can read: without extents, which are local.
func AppendRecord(b []byte, r *Record) []byte {
	local := *r
	local.Extents = nil
	b = mp.AppendArray(b, 4)
	b = mp.AppendUint(b, uint64(r.Shard))
	b = mp.AppendUint(b, uint64(r.Replica))
	b = mp.AppendBin(b, appendHead(nil, &local))
	return mp.AppendBin(b, r.Meta)
}

// ReadRecord is the reverse of AppendRecord. It copies.
func ReadRecord(b []byte) (Record, error) {
	m := mp.NewReader(b)
	var r Record
	n := m.ArrayMin(4)
	r.Shard = engine.ShardID(m.Uint())
	r.Replica = engine.ReplicaID(m.Uint())
	head := m.Bin()
	r.Meta = bytes.Clone(m.Bin())
	m.Skip(n - 4)
	if err := m.Finish(); err != nil {
		return Record{}, err
	}
	h := mp.NewReader(head)
	readHead(&h, &r)
	if err := h.Finish(); err != nil {
		return Record{}, err
	}
	return r, nil
}

// matches tells whether the stored record is at applied with exactly these extents, without allocating.
func matches(key, stored []byte, applied engine.LogID, extents []Extent) (bool, error) {
	b, err := unseal(spaceRecords, key, stored)
	if err != nil {
		return false, err
	}
	m := mp.NewReader(b)
	m.ArrayMin(7)
	m.Uint()
	same := m.Uint() == applied.Term
	same = m.Uint() == applied.Index && same
	if m.Array() != 3*len(extents) {
		return false, m.Err()
	}
	for _, e := range extents {
		same = bytes.Equal(m.Bin(), e.Start) && same
		same = bytes.Equal(m.Bin(), e.End) && same
		same = TabletID(m.Uint()) == e.Tablet && same
	}
	tombstone := m.Bool()
	return same && !tombstone, m.Err()
}

// decodeHead decodes the stored record at key, without its Meta.
func decodeHead(key, b []byte) (Record, error) {
	if len(key) != 16 {
		return Record{}, &CorruptError{Key: bytes.Clone(key), What: "key of a record"}
	}
	r := Record{Key: store.Key{
		Shard:   engine.ShardID(binary.BigEndian.Uint64(key)),
		Replica: engine.ReplicaID(binary.BigEndian.Uint64(key[8:])),
	}}
	b, err := unseal(spaceRecords, key, b)
	if err != nil {
		return Record{}, err
	}
	m := mp.NewReader(b)
	readHead(&m, &r)
	if err := m.Finish(); err != nil {
		return Record{}, &CorruptError{Key: bytes.Clone(key), What: "record: " + err.Error()}
	}
	return r, nil
}

// A garbage extent: key is tablet, start; value is the end, empty for plus infinity.

func garbageKey(e Extent) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(e.Start)), uint64(e.Tablet)), e.Start...)
}

func decodeGarbage(key, b []byte) (Extent, error) {
	if len(key) < 8 {
		return Extent{}, &CorruptError{Key: bytes.Clone(key), What: "key of a garbage extent"}
	}
	end, err := unseal(spaceGarbage, key, b)
	if err != nil {
		return Extent{}, err
	}
	return Extent{
		Tablet: TabletID(binary.BigEndian.Uint64(key)),
		Start:  cloneKey(key[8:]),
		End:    cloneKey(end),
	}, nil
}
