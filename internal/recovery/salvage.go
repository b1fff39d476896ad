package recovery

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/durable"
	"github.com/kiloraft/kiloraft/internal/escape"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// A salvage file is lines of JSON: a SalvageHeader, a SalvagedEntry for each entry, by shard and index, and a SalvageEnd with the number
// of entries and the CRC32C of all the bytes before its own line. Payloads are those of the raft log, in base64.

// SalvageHeader is the first line of a salvage file.
type SalvageHeader struct {
	Salvage int    `json:"kiloraft_salvage"` // the format, 1
	Plan    string `json:"plan"`
	Cluster string `json:"cluster"`
	Node    uint64 `json:"node"`
}

// SalvagedEntry is a log entry of a survivor that is not in the log that goes on.
type SalvagedEntry struct {
	Shard   uint64 `json:"shard"`
	Replica uint64 `json:"replica"`
	Term    uint64 `json:"term"`
	Index   uint64 `json:"index"`
	Kind    uint8  `json:"kind"`
	Payload []byte `json:"payload"`
}

// SalvageEnd is the last line of a salvage file.
type SalvageEnd struct {
	Entries *uint64 `json:"entries"`
	CRC32C  uint32  `json:"crc32c"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SalvagePath is where a plan's salvage file of a survivor is.
func SalvagePath(dir, plan string) string { return filepath.Join(dir, "recovery-"+plan+".salvage") }

// salvage writes what is cut off on this node, durably. It tells the file and the number of entries; none: there is no file.
func (s *survivor) salvage(logs map[store.Key]*raftlog.ReplicaLog) (path string, n uint64, err error) {
	var buf bytes.Buffer
	line := func(v any) error {
		b, err := json.Marshal(v)
		buf.Write(append(b, '\n'))
		return err
	}
	if err := line(SalvageHeader{1, s.plan.ID, s.plan.Cluster, s.node}); err != nil {
		return "", 0, err
	}
	for i := range s.plan.Shards {
		sp := &s.plan.Shards[i]
		for _, o := range sp.Others {
			if o.Node != s.node || o.CutFrom == 0 {
				continue
			}
			key := store.Key{Shard: engine.ShardID(sp.Shard), Replica: engine.ReplicaID(o.Replica)}
			l := logs[key]
			if l == nil || toPos(l.Last) != o.Last {
				return "", 0, refuse("replica %v on node %d is not as in its report: it was used since then; inspect all survivors again", key, s.node)
			}
			runs, err := l.Read(o.CutFrom, o.CutTo)
			if err != nil {
				return "", 0, err
			}
			for _, run := range runs {
				index := run.First
				for it := raftlog.NewIter(run.Body); it.Next(); index++ {
					if index < o.CutFrom || index > o.CutTo {
						continue
					}
					n++
					if err := line(SalvagedEntry{sp.Shard, o.Replica, run.Term, index, uint8(it.Kind), it.Payload}); err != nil {
						return "", 0, err
					}
				}
			}
		}
	}
	if n == 0 {
		return "", 0, nil
	}
	if err := line(SalvageEnd{&n, crc32.Checksum(buf.Bytes(), castagnoli)}); err != nil {
		return "", 0, err
	}
	path = SalvagePath(s.dir, s.plan.ID)
	return path, n, writeDurably(path, buf.Bytes())
}

// writeDurably writes a file so that after a crash it is there as a whole or not at all.
func writeDurably(path string, b []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return durable.Replace(path+".tmp", path)
}

// ReadSalvage calls f with each entry of a salvage file. It fails where the file is not as it was written.
func ReadSalvage(r io.Reader, f func(*SalvageHeader, *SalvagedEntry) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	var h SalvageHeader
	var sum uint32
	n := uint64(0)
	for first := true; ; first = false {
		b, err := in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("salvage file: it has no end: %w", err)
		}
		if first {
			if err := json.Unmarshal(b, &h); err != nil || h.Salvage != 1 {
				return fmt.Errorf("salvage file: it does not begin like one of format 1: %v", err)
			}
			sum = crc32.Update(0, castagnoli, b)
			continue
		}
		var end SalvageEnd
		if err := json.Unmarshal(b, &end); err != nil {
			return fmt.Errorf("salvage file: after %d entries: %w", n, err)
		}
		if end.Entries != nil {
			if *end.Entries != n || end.CRC32C != sum {
				return fmt.Errorf("salvage file: %d entries with checksum %08x were written, %d with %08x are there", *end.Entries, end.CRC32C, n, sum)
			}
			return nil
		}
		var e SalvagedEntry
		if err := json.Unmarshal(b, &e); err != nil {
			return fmt.Errorf("salvage file: after %d entries: %w", n, err)
		}
		sum = crc32.Update(sum, castagnoli, b)
		n++
		if err := f(&h, &e); err != nil {
			return err
		}
	}
}

// What tells in words what an entry would have done.
func (e *SalvagedEntry) What() string {
	switch engine.EntryKind(e.Kind) {
	case engine.EntryBlank:
		return "blank"
	case engine.EntryMembership:
		return "membership"
	}
	kind, _, body, err := shard.SplitEntry(e.Payload)
	var w shard.Write
	switch {
	case err != nil:
		return err.Error()
	case kind == shard.CommandTime:
		return "time"
	case kind != shard.CommandWrite:
		return fmt.Sprintf("command %d (split or merge)", kind)
	}
	if err := shard.DecodeWrite(body, &w); err != nil {
		return err.Error()
	}
	text := ""
	if len(w.Conditions) > 0 {
		text = fmt.Sprintf("if %d conditions hold: ", len(w.Conditions))
	}
	for i := range w.Ops {
		if i > 0 {
			text += ", "
		}
		switch o := &w.Ops[i]; o.Kind {
		case shard.OpPut:
			text += fmt.Sprintf("put %s (%d bytes)", escape.String(o.Key), len(o.Value))
		case shard.OpDelete:
			text += "delete " + escape.String(o.Key)
		case shard.OpAdd:
			text += fmt.Sprintf("add %s %d", escape.String(o.Key), o.Delta)
		default:
			text += "delete range from " + escape.String(o.Key)
		}
	}
	return text
}
