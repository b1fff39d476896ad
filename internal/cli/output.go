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
	"github.com/kiloraft/kiloraft/router/api"
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

func shardView(s client.Shard) api.ShardView {
	v := api.ShardView{ID: s.ID, Start: escape.String(s.Start), End: escape.String(s.End), Version: s.Version, ConfVersion: s.ConfVersion,
		Leader: s.Leader, Replicas: append([]client.Replica{}, s.Replicas...), Keys: uint64(s.Keys), Bytes: uint64(s.Bytes)}
	if l := s.Load; l != nil {
		v.Load = &api.LoadView{Reads: l.Reads, Writes: l.Writes, Bytes: l.Bytes, HotKey: escape.String(l.HotKey), HotPercent: l.HotPercent}
	}
	return v
}

func shardViews(list []client.Shard) []api.ShardView {
	out := make([]api.ShardView, 0, len(list))
	for _, s := range list {
		out = append(out, shardView(s))
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
