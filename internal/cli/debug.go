package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

func (a *app) debugCmd() *cobra.Command {
	return group("debug", "Look at the data of a stopped node, recover it, or gather what running nodes tell", a.debugBundleCmd(), a.debugLogCmd(), a.debugStateCmd(), a.debugVerifyCmd(), a.debugRecoverCmd())
}

// dataDirFlag adds --data-dir to a command that runs on a stopped node's directory, which it holds locked meanwhile.
func (a *app) dataDirFlag(cmd *cobra.Command, run func(dir string) error) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.Flags().String("data-dir", "", "data directory of a stopped node")
	cmd.RunE = func(*cobra.Command, []string) error {
		dir := a.cfg.DataDir
		if dir == "" {
			return usagef("--data-dir: name the data directory of a stopped node")
		}
		for _, p := range []string{node.StatePath(dir), node.LogPath(dir)} {
			if _, err := os.Stat(p); err != nil {
				return fmt.Errorf("%s is no data directory of a node: %w", dir, err)
			}
		}
		release, err := node.Lock(dir)
		if err != nil {
			return err
		}
		defer release()
		return run(dir)
	}
	return cmd
}

// logRecord is a record of the raft log as it is printed.
type logRecord struct {
	File      string       `json:"file"`
	Offset    int64        `json:"offset"`
	Sequence  uint64       `json:"sequence"`
	Kind      string       `json:"kind"`
	Shard     uint64       `json:"shard,omitempty"`
	Replica   uint64       `json:"replica,omitempty"`
	Term      uint64       `json:"term,omitempty"`
	Index     uint64       `json:"index,omitempty"`
	VoteNode  uint64       `json:"vote_node,omitempty"`
	Committed bool         `json:"vote_committed,omitempty"`
	Entries   []logEntries `json:"entries,omitempty"`
}

type logEntries struct {
	Term  uint64 `json:"term"`
	First uint64 `json:"first"`
	Count int    `json:"count"`
	Bytes int    `json:"bytes"`
}

func toLogRecord(r *raftlog.Record) logRecord {
	out := logRecord{File: r.File, Offset: r.Offset, Sequence: r.Sequence, Kind: r.Kind, Shard: uint64(r.Key.Shard), Replica: uint64(r.Key.Replica)}
	switch r.Kind {
	case "vote":
		out.Term, out.VoteNode, out.Committed = r.Vote.Term, uint64(r.Vote.Peer.Node), r.Vote.Committed
	case "truncate":
		out.Index = r.First
	default:
		out.Term, out.Index = r.LogID.Term, r.LogID.Index
	}
	for _, run := range r.Runs {
		out.Entries = append(out.Entries, logEntries{run.Term, run.First, run.Count, len(run.Body)})
	}
	return out
}

func (r *logRecord) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d seq=%d %s", r.File, r.Offset, r.Sequence, r.Kind)
	if r.Shard != 0 {
		fmt.Fprintf(&b, " shard=%d replica=%d", r.Shard, r.Replica)
	}
	if r.Term != 0 || r.Index != 0 {
		fmt.Fprintf(&b, " term=%d", r.Term)
	}
	if r.Index != 0 {
		fmt.Fprintf(&b, " index=%d", r.Index)
	}
	if r.VoteNode != 0 {
		fmt.Fprintf(&b, " for=%d won=%t", r.VoteNode, r.Committed)
	}
	for _, e := range r.Entries {
		fmt.Fprintf(&b, " entries=%d..%d@%d(%dB)", e.First, e.First+uint64(e.Count)-1, e.Term, e.Bytes)
	}
	return b.String()
}

var errLimit = errors.New("limit reached")

func (a *app) debugLogCmd() *cobra.Command {
	var shard uint64
	var limit int
	cmd := a.dataDirFlag(&cobra.Command{
		Use: "log --data-dir D", Short: "Print the records of the raft log, in order",
		Long: "Prints the records of the raft log of a stopped node, in order: file and offset of the frame, sequence number, and what it records.\n" +
			"Where the log is corrupt it stops with file and offset.",
	}, func(dir string) error {
		w := bufio.NewWriterSize(a.env.Stdout, 64<<10)
		n := 0
		err := raftlog.Dump(vfs.OS(), node.LogPath(dir), func(r *raftlog.Record) error {
			if shard != 0 && uint64(r.Key.Shard) != shard {
				return nil
			}
			if limit > 0 && n == limit {
				return errLimit
			}
			rec := toLogRecord(r)
			n++
			if !a.json() {
				_, err := fmt.Fprintln(w, rec.line())
				return err
			}
			return jsonElement(w, n, rec)
		})
		if errors.Is(err, errLimit) {
			err = nil
		}
		if a.json() {
			jsonEnd(w, n)
		}
		return errors.Join(w.Flush(), err)
	})
	cmd.Flags().Uint64Var(&shard, "shard", 0, "only this shard (0: all)")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many records (0: all)")
	return cmd
}

// jsonElement writes the n-th element, from 1, of a streamed array.
func jsonElement(w *bufio.Writer, n int, v any) error {
	sep := ",\n "
	if n == 1 {
		sep = "[\n "
	}
	if _, err := w.WriteString(sep); err != nil {
		return err
	}
	b, err := json.Marshal(v)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// jsonEnd ends a streamed array of n elements. An error sticks to w.
func jsonEnd(w *bufio.Writer, n int) {
	text := "\n]\n"
	if n == 0 {
		text = "[]\n"
	}
	_, _ = w.WriteString(text)
}

func (a *app) debugStateCmd() *cobra.Command {
	var items bool
	cmd := a.dataDirFlag(&cobra.Command{
		Use: "state --data-dir D", Short: "Print what the state of a stopped node holds",
		Long: "Prints the records of the replicas, the tablets and the garbage in the state of a stopped node; with --items also every item.",
	}, func(dir string) error {
		if !a.json() {
			w := bufio.NewWriterSize(a.env.Stdout, 64<<10)
			err := state.Dump(node.StatePath(dir), w, items)
			return errors.Join(w.Flush(), err)
		}
		var buf bytes.Buffer
		if err := state.Dump(node.StatePath(dir), &buf, items); err != nil {
			return err
		}
		lines := []string{}
		for l := range strings.Lines(buf.String()) {
			lines = append(lines, strings.TrimSuffix(l, "\n"))
		}
		return a.emit(struct {
			Lines []string `json:"lines"`
		}{lines}, nil)
	})
	cmd.Flags().BoolVar(&items, "items", false, "print every item")
	return cmd
}

// verified is the outcome of debug verify.
type verified struct {
	OK    bool `json:"ok"`
	State struct {
		Records    int    `json:"records"`
		Tombstones int    `json:"tombstones"`
		Tablets    int    `json:"tablets"`
		Unlinked   int    `json:"unlinked_tablets"`
		Garbage    int    `json:"garbage_extents"`
		Items      uint64 `json:"items"`
		Bytes      uint64 `json:"bytes"`
		SyncedSeq  uint64 `json:"synced_sequence"`
	} `json:"state"`
	Log struct {
		Segments     int    `json:"segments"`
		Replicas     int    `json:"replicas"`
		Entries      uint64 `json:"entries"`
		Bytes        int64  `json:"bytes"`
		LastSequence uint64 `json:"last_sequence"`
		File         string `json:"file"`
		End          int64  `json:"end"`
		Sealed       bool   `json:"sealed"`
		readable     bool
	} `json:"log"`
	Problems []string `json:"problems"`
}

func (a *app) debugVerifyCmd() *cobra.Command {
	return a.dataDirFlag(&cobra.Command{
		Use: "verify --data-dir D", Short: "Check every checksum of a stopped node's raft log and state",
		Long: "Checks every checksum of the raft log and the state of a stopped node, and that both fit together. It changes nothing. Exit 1 if something\nis wrong; each problem names its place.",
	}, func(dir string) error {
		v := verified{Problems: []string{}}
		st, err := state.Verify(node.StatePath(dir))
		v.problem("state", err)
		v.State.Records, v.State.Tombstones, v.State.Tablets, v.State.Unlinked = st.Records, st.Tombstones, st.Tablets, st.Unlinked
		v.State.Garbage, v.State.Items, v.State.Bytes, v.State.SyncedSeq = st.Garbage, st.Items, st.Bytes, st.SyncedSeq
		lg, err := raftlog.Verify(vfs.OS(), node.LogPath(dir), st.SyncedSeq)
		v.problem("log", err)
		v.Log.readable = err == nil
		v.Log.Segments, v.Log.Replicas, v.Log.Entries, v.Log.Bytes = lg.Segments, lg.Replicas, lg.Entries, lg.Bytes
		v.Log.LastSequence, v.Log.File, v.Log.End, v.Log.Sealed = lg.LastSequence, lg.File, lg.End, lg.Sealed
		v.OK = len(v.Problems) == 0
		if err := a.emit(v, func(w io.Writer) error { return v.print(w) }); err != nil {
			return err
		}
		if !v.OK {
			return silentError{exitFailed}
		}
		return nil
	})
}

func (v *verified) problem(where string, err error) {
	if err == nil {
		return
	}
	text, _, _ := strings.Cut(err.Error(), "\ngoroutine ") // a panic over a damaged page: where it was in the program helps nobody here
	for line := range strings.Lines(text) {
		v.Problems = append(v.Problems, where+": "+strings.TrimSpace(line))
	}
}

func (v *verified) print(w io.Writer) error {
	fmt.Fprintf(w, "state  %d records, %d tombstones, %d tablets, %d items of %s, synced sequence %d\n", v.State.Records, v.State.Tombstones, v.State.Tablets,
		v.State.Items, humanBytes(int64(v.State.Bytes)), v.State.SyncedSeq)
	sealed := "sealed"
	if !v.Log.Sealed {
		sealed = "not sealed: the node was killed, or is still in use"
	}
	if !v.Log.readable {
		sealed = "not read to its end"
	}
	fmt.Fprintf(w, "log    %d segments, %d replicas, %d entries of %s, last sequence %d at %s:%d (%s)\n", v.Log.Segments, v.Log.Replicas, v.Log.Entries,
		humanBytes(v.Log.Bytes), v.Log.LastSequence, v.Log.File, v.Log.End, sealed)
	for _, p := range v.Problems {
		fmt.Fprintf(w, "PROBLEM %s\n", p)
	}
	verdict := "every checksum is right"
	if !v.OK {
		verdict = fmt.Sprintf("%d problems", len(v.Problems))
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}
