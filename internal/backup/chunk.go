package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// A chunk ends behind a key whose hash says so, once it has chunkMin bytes, but before it has more than chunkMax and one item. So the same
// items make the same chunks, whatever changed elsewhere.
const (
	chunkMin  = 1 << 20
	chunkMax  = 8 << 20
	chunkMask = 1<<10 - 1

	chunkRawMax = chunkMax + shard.KeyBytesMax + shard.ValueBytesMax + 64
)

func chunkEnds(raw int, key []byte) bool {
	return raw >= chunkMax || raw >= chunkMin && xxhash.Sum64(key)&chunkMask == 0
}

var (
	zip, _   = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2))
	unzip, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(chunkRawMax))
)

func chunkName(sum string) string { return "chunks/" + sum[:2] + "/" + sum + ".zst" }

func checkChunkName(sum string) error {
	if b, err := hex.DecodeString(sum); err != nil || len(b) != sha256.Size || hex.EncodeToString(b) != sum {
		return fmt.Errorf("%w: chunk name %q", ErrCorrupt, sum)
	}
	return nil
}

// hasChunk tells whether a chunk is in the store, as far as its size tells.
func hasChunk(ctx context.Context, s Store, c *Chunk) (bool, error) {
	size, err := s.Size(ctx, chunkName(c.SHA256))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && size == c.Stored, err
}

// hasChunks tells whether all chunks of a segment are.
func hasChunks(ctx context.Context, s Store, seg *Segment) (bool, error) {
	for i := range seg.Chunks {
		if there, err := hasChunk(ctx, s, &seg.Chunks[i]); err != nil || !there {
			return false, err
		}
	}
	return true, nil
}

// putChunk stores what a chunk holds, if it is not there already.
func putChunk(ctx context.Context, s Store, raw []byte, keys int64) (c Chunk, stored bool, err error) {
	sum := sha256.Sum256(raw)
	data := zip.EncodeAll(raw, nil)
	c = Chunk{SHA256: hex.EncodeToString(sum[:]), Raw: int64(len(raw)), Stored: int64(len(data)), Keys: keys}
	if there, err := hasChunk(ctx, s, &c); err != nil || there {
		return c, false, err
	}
	return c, true, s.Put(ctx, chunkName(c.SHA256), data)
}

// getChunk reads a chunk and checks it: its checksum, its size, and its items, which must be in order and in the segment.
// item is called for each; key and value alias memory of the chunk.
func getChunk(ctx context.Context, s Store, seg *Segment, c *Chunk, item func(state.KV) error) error {
	name := chunkName(c.SHA256)
	data, err := s.Get(ctx, name, chunkRawMax+chunkRawMax/128+1<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing (%w)", ErrCorrupt, name, err)
	}
	if err != nil {
		return err
	}
	raw, err := unzip.DecodeAll(data, nil)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, name, err)
	}
	if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != c.SHA256 || int64(len(raw)) != c.Raw {
		return fmt.Errorf("%w: %s: its content has another checksum or size", ErrCorrupt, name)
	}
	var last []byte
	keys := int64(0)
	for len(raw) > 0 {
		kv, n, err := state.ReadKV(raw)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrCorrupt, name, err)
		}
		if bytes.Compare(kv.Key, seg.Start) < 0 || len(seg.End) > 0 && bytes.Compare(kv.Key, seg.End) >= 0 || keys > 0 && bytes.Compare(kv.Key, last) <= 0 {
			return fmt.Errorf("%w: %s: key %q is out of its place", ErrCorrupt, name, kv.Key)
		}
		if err := item(kv); err != nil {
			return err
		}
		last, raw = kv.Key, raw[n:]
		keys++
	}
	if keys != c.Keys {
		return fmt.Errorf("%w: %s has %d keys, the manifest says %d", ErrCorrupt, name, keys, c.Keys)
	}
	return nil
}
