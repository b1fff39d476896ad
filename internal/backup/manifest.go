package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// format is the version of the format. A newer one is refused.
const format = 1

// manifestBytesMax bounds a manifest.
const manifestBytesMax = 1 << 30

// ErrCorrupt tells that a backup is not what was stored.
var ErrCorrupt = errors.New("backup is corrupt")

// Manifest describes a backup.
type Manifest struct {
	Format  int    `json:"format"`
	Name    string `json:"name"`
	Cluster string `json:"cluster_id"`
	Parent  string `json:"parent,omitempty"`
	// Every segment is the state of its shard at a moment between Begin and End, by the clock of who made the backup.
	Begin    time.Time `json:"begin"`
	End      time.Time `json:"end"`
	Segments []Segment `json:"segments"`
	Totals   Totals    `json:"totals"`
}

// Segment is a range of keys as one cut of one shard had it.
type Segment struct {
	Start       []byte  `json:"start"` // base64, as all bytes
	End         []byte  `json:"end"`   // empty: the end of the key space
	Shard       uint64  `json:"shard"`
	ShardStart  []byte  `json:"shard_start"` // of the descriptor at the cut
	ShardEnd    []byte  `json:"shard_end"`
	Version     uint64  `json:"version"`
	ConfVersion uint64  `json:"conf_version"`
	Term        uint64  `json:"applied_term"`
	Index       uint64  `json:"applied_index"`
	Time        int64   `json:"shard_time_ms"`  // Unix ms: what had expired by then is expired
	Checksum    uint64  `json:"shard_checksum"` // of the whole shard at that entry
	Reused      bool    `json:"reused,omitempty"`
	Chunks      []Chunk `json:"chunks"`
}

// Chunk is a file: items in order, compressed.
type Chunk struct {
	SHA256 string `json:"sha256"` // of the content before compression
	Raw    int64  `json:"raw_bytes"`
	Stored int64  `json:"stored_bytes"`
	Keys   int64  `json:"keys"`
}

// Totals sum up a backup.
type Totals struct {
	Keys   int64 `json:"keys"`
	Raw    int64 `json:"raw_bytes"`
	Stored int64 `json:"stored_bytes"`
	Chunks int64 `json:"chunks"`
	// New are the chunks that were not in the store before; Reused the segments that were not even read.
	NewChunks int64 `json:"new_chunks"`
	NewStored int64 `json:"new_stored_bytes"`
	Reused    int64 `json:"reused_segments"`
}

var nameOK = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// CheckName refuses a name that cannot be a backup's.
func CheckName(name string) error {
	if !nameOK.MatchString(name) {
		return fmt.Errorf("backup name %q: want 1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit", name)
	}
	return nil
}

const manifests = "manifests/"

func manifestName(name string) string { return manifests + name + ".json" }

// Names lists the backups of a store.
func Names(ctx context.Context, s Store) ([]string, error) {
	files, err := s.List(ctx, manifests)
	var out []string
	for _, f := range files {
		if n, ok := strings.CutSuffix(strings.TrimPrefix(f, manifests), ".json"); ok {
			out = append(out, n)
		}
	}
	return out, err
}

// A manifest's file is JSON, and a last line with its SHA-256.
func (m *Manifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	sum := sha256.Sum256(b)
	return append(b, "sha256 "+hex.EncodeToString(sum[:])+"\n"...), nil
}

// Load reads and checks a manifest; the error is ErrCorrupt if it was damaged.
func Load(ctx context.Context, s Store, name string) (*Manifest, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	b, err := s.Get(ctx, manifestName(name), manifestBytesMax)
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w", name, err)
	}
	m, err := decodeManifest(b)
	if err == nil && m.Name != name {
		err = fmt.Errorf("%w: it is of the backup %q", ErrCorrupt, m.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", name, err)
	}
	return m, nil
}

func decodeManifest(b []byte) (*Manifest, error) {
	const tail = len("sha256 \n") + 2*sha256.Size
	if len(b) < tail {
		return nil, fmt.Errorf("%w: only %d bytes", ErrCorrupt, len(b))
	}
	body := b[:len(b)-tail]
	sum := sha256.Sum256(body)
	if string(b[len(body):]) != "sha256 "+hex.EncodeToString(sum[:])+"\n" {
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrCorrupt)
	}
	m := new(Manifest)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if m.Format != format {
		return nil, fmt.Errorf("format %d, this program knows %d", m.Format, format)
	}
	for i := range m.Segments {
		for _, c := range m.Segments[i].Chunks {
			if err := checkChunkName(c.SHA256); err != nil { // it becomes the name of a file
				return nil, err
			}
		}
	}
	return m, m.checkTiles()
}

// checkTiles tells whether the segments cover the key space, each key once.
func (m *Manifest) checkTiles() error {
	if len(m.Segments) == 0 {
		return fmt.Errorf("%w: no segments", ErrCorrupt)
	}
	var at []byte
	for i := range m.Segments {
		s := &m.Segments[i]
		if i > 0 && len(at) == 0 || !bytes.Equal(s.Start, at) || len(s.End) > 0 && bytes.Compare(s.Start, s.End) >= 0 {
			return fmt.Errorf("%w: segment %d from %q to %q does not begin where the one before ends, %q", ErrCorrupt, i, s.Start, s.End, at)
		}
		at = s.End
	}
	if len(at) > 0 {
		return fmt.Errorf("%w: no segment from %q on", ErrCorrupt, at)
	}
	return nil
}
