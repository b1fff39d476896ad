package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/escape"
)

func (a *app) json() bool { return a.cfg.Output == "json" }

// emit prints data: one JSON document, or what human writes.
func (a *app) emit(v any, human func(w io.Writer) error) error {
	if !a.json() {
		return human(a.env.Stdout)
	}
	enc := json.NewEncoder(a.env.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// say is chatter for people: stderr.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.env.Stderr, format+"\n", args...) }

// table prints rows below a header.
func table(w io.Writer, header string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(header, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// shardJSON is a shard as scripts see it.
type shardJSON struct {
	ID          uint64           `json:"id"`
	Start       string           `json:"start"`
	End         string           `json:"end"`
	Version     uint64           `json:"version"`
	ConfVersion uint64           `json:"conf_version"`
	Leader      uint64           `json:"leader"`
	Replicas    []client.Replica `json:"replicas"`
	Keys        int64            `json:"keys"`
	Bytes       int64            `json:"bytes"`
	Load        *loadJSON        `json:"load,omitempty"`
}

// loadJSON is the load of a shard as scripts see it.
type loadJSON struct {
	Reads      uint64 `json:"reads_per_s"`
	Writes     uint64 `json:"writes_per_s"`
	Bytes      uint64 `json:"bytes_per_s"`
	HotKey     string `json:"hot_key,omitempty"`
	HotPercent uint64 `json:"hot_percent,omitempty"`
}

func toShardJSON(s client.Shard) shardJSON {
	if s.Replicas == nil {
		s.Replicas = []client.Replica{}
	}
	out := shardJSON{ID: s.ID, Start: escape.String(s.Start), End: escape.String(s.End), Version: s.Version, ConfVersion: s.ConfVersion,
		Leader: s.Leader, Replicas: s.Replicas, Keys: s.Keys, Bytes: s.Bytes}
	if l := s.Load; l != nil {
		out.Load = &loadJSON{Reads: l.Reads, Writes: l.Writes, Bytes: l.Bytes, HotKey: escape.String(l.HotKey), HotPercent: l.HotPercent}
	}
	return out
}

// shorten cuts long text for a table.
func shorten(s string, runes int) string {
	if utf8.RuneCountInString(s) <= runes {
		return s
	}
	return string([]rune(s)[:runes-1]) + "…"
}

// humanBytes writes a size for people.
func humanBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f := float64(n)
	u := -1
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	return fmt.Sprintf("%.1f%ciB", f, units[u])
}
