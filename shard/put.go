package shard

import (
	"encoding/binary"
	"math"

	"github.com/cespare/xxhash/v2"

	"github.com/kiloraft/kiloraft/engine"
)

// decodePut reads the form that nearly all writes have: one put without conditions. A write is decoded four times, by the leader that
// takes it and by each replica that applies it, so this is worth a way of its own. False: b has another form, or another encoding of this
// one, or is malformed; decodeWrite tells. What both accept they read alike.
func decodePut(b []byte, w *Write) bool {
	if len(b) == 0 || b[0] != 0x90|7 {
		return false
	}
	shard, at := cutUint(b, 1)
	version, at := cutUint(b, at)
	session, at := cutBin(b, at)
	seq, at := cutUint(b, at)
	lowest, at := cutUint(b, at)
	body := at
	if at < 0 || len(b)-at < len(putHead) || string(b[at:at+len(putHead)]) != putHead {
		return false
	}
	key, at := cutBin(b, at+len(putHead))
	value, at := cutBin(b, at)
	expire, at := cutUint(b, at)
	if at != len(b) || expire > math.MaxInt64 || len(session) != 0 && len(session) != len(w.Session) {
		return false
	}
	w.Shard, w.Version, w.Seq, w.Lowest = engine.ShardID(shard), version, seq, lowest
	w.Session, w.Fingerprint = SessionID{}, 0
	if len(session) > 0 {
		copy(w.Session[:], session)
		if !w.Session.IsZero() {
			w.Fingerprint = xxhash.Sum64(b[body:])
		}
	}
	w.Conditions = w.Conditions[:0]
	w.Ops = append(w.Ops[:0], Op{Kind: OpPut, Key: key, Value: value, Expire: int64(expire)})
	return true
}

// putHead is what stands between lowest and the key: no condition, one operation, of four fields, a put.
const putHead = "\x90\x91\x94\x01"

// cutUint reads an unsigned integer at offset at, and returns the offset behind it, -1 if there is none; of offset -1 there is none.
func cutUint(b []byte, at int) (uint64, int) {
	if uint(at) >= uint(len(b)) {
		return 0, -1
	}
	c, rest := b[at], b[at+1:]
	switch {
	case c < 0x80:
		return uint64(c), at + 1
	case c == 0xcc && len(rest) >= 1:
		return uint64(rest[0]), at + 2
	case c == 0xcd && len(rest) >= 2:
		return uint64(binary.BigEndian.Uint16(rest)), at + 3
	case c == 0xce && len(rest) >= 4:
		return uint64(binary.BigEndian.Uint32(rest)), at + 5
	case c == 0xcf && len(rest) >= 8:
		return binary.BigEndian.Uint64(rest), at + 9
	}
	return 0, -1
}

// cutBin reads a bin of up to 64 KiB as cutUint reads an integer. It aliases b.
func cutBin(b []byte, at int) ([]byte, int) {
	if at < 0 || len(b)-at < 2 {
		return nil, -1
	}
	n, from := int(b[at+1]), at+2
	switch {
	case b[at] == 0xc4:
	case b[at] == 0xc5 && len(b)-at >= 3:
		n, from = n<<8|int(b[at+2]), at+3
	default:
		return nil, -1
	}
	if n > len(b)-from {
		return nil, -1
	}
	return b[from : from+n : from+n], from + n
}

// putKey returns the key of a write that decodePut takes, nil of others.
func putKey(b []byte) []byte {
	if len(b) == 0 || b[0] != 0x90|7 {
		return nil
	}
	_, at := cutUint(b, 1)
	_, at = cutUint(b, at)
	_, at = cutBin(b, at)
	_, at = cutUint(b, at)
	_, at = cutUint(b, at)
	if at < 0 || len(b)-at < len(putHead) || string(b[at:at+len(putHead)]) != putHead {
		return nil
	}
	key, _ := cutBin(b, at+len(putHead))
	return key
}
