package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/load"
)

// scanJSON streams one JSON array.
type scanJSON struct {
	w        *bufio.Writer
	keysOnly bool
	n        int
}

func (s *scanJSON) item(it client.Item) error {
	s.n++
	return jsonElement(s.w, s.n, toItemJSON(it, !s.keysOnly))
}

func (s *scanJSON) end() error {
	jsonEnd(s.w, s.n)
	return nil
}

func (a *app) kvImportCmd() *cobra.Command {
	var format, prefix string
	var inflight int
	cmd := &cobra.Command{
		Use: "import FILE|DIR|-", Args: cobra.ExactArgs(1), Short: "Write many keys from a file, a directory or standard input",
		Long: `Writes many keys. Formats:
  tsv    key<TAB>value a line; tab, newline and backslash within as \t, \n, \\
  jsonl  {"key":…,"value":…} a line, or key_b64 and value_b64 where bytes are not UTF-8
  dir    one key per file, the path below DIR; its value is the file's bytes
Lines that cannot be imported are reported and skipped; then the exit code is 1. Without --format a directory is dir, a name that ends
in .jsonl is jsonl, and all else tsv. --prefix is put before every key.`,
		Example: "  kiloraft kv import --format dir $(go env GOROOT)/src\n  kiloraft kv import data.jsonl",
		RunE: func(cmd *cobra.Command, args []string) error {
			opt := load.ImportOptions{Inflight: inflight, Timeout: a.cfg.Timeout, Progress: new(load.Progress)}
			var err error
			if opt.Format, err = formatArg(format, args[0]); err != nil {
				return err
			}
			if opt.Prefix, err = boundArg(prefix); err != nil {
				return err
			}
			if inflight < 1 || inflight > 1<<16 {
				return usagef("--inflight %d: want 1 to 65536", inflight)
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stop := a.progressBar("import", opt.Progress, args[0] != "-")
			report, err := load.Import(cmd.Context(), c, args[0], a.env.Stdin, opt)
			stop()
			return a.loadReport("imported", report, err, a.env.Stdout)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "tsv, jsonl or dir")
	cmd.Flags().StringVar(&prefix, "prefix", "", "put before every key")
	cmd.Flags().IntVar(&inflight, "inflight", 256, "writes at a time")
	return cmd
}

func (a *app) kvExportCmd() *cobra.Command {
	var format, prefix string
	cmd := &cobra.Command{
		Use: "export [FILE|DIR]", Args: cobra.MaximumNArgs(1), Short: "Write all keys, in order, to a file, a directory or standard output",
		Long: `Writes all keys in order. Importing the result elsewhere gives the same store. For the formats see kv import; without --format an existing
directory is dir, a name that ends in .jsonl is jsonl, and all else tsv. --prefix selects keys; they are written whole.
With dir, a key that is no clean relative path is reported and skipped, and the exit code is 1; nothing is written outside DIR.`,
		Example: "  kiloraft kv export backup.jsonl\n  kiloraft kv export --format dir --prefix net/ out",
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "-"
			if len(args) > 0 {
				path = args[0]
			}
			opt := load.ExportOptions{Timeout: a.cfg.Timeout, Progress: new(load.Progress)}
			var err error
			if opt.Format, err = formatArg(format, path); err != nil {
				return err
			}
			if opt.Format == load.Dir && path == "-" {
				return usagef("dir writes a directory: name it")
			}
			if opt.Prefix, err = boundArg(prefix); err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stop := a.progressBar("export", opt.Progress, false)
			report, err := load.Export(cmd.Context(), c, path, a.env.Stdout, opt)
			stop()
			out := a.env.Stdout
			if path == "-" {
				out = a.env.Stderr // stdout has the data
			}
			return a.loadReport("exported", report, err, out)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "tsv, jsonl or dir")
	cmd.Flags().StringVar(&prefix, "prefix", "", "only keys that begin so")
	return cmd
}

func formatArg(format, path string) (load.Format, error) {
	if format == "" {
		return load.Guess(path), nil
	}
	f, err := load.ParseFormat(format)
	if err != nil {
		return "", usageError{err}
	}
	return f, nil
}

// rejectedShownMax bounds what people are shown of rejected records; JSON has more.
const rejectedShownMax = 20

func (a *app) loadReport(verb string, r load.Report, err error, out io.Writer) error {
	for i, rej := range r.Rejected {
		if i == rejectedShownMax {
			a.say("… and %d more", r.RejectedTotal-rejectedShownMax)
			break
		}
		a.say("rejected %s: %s", rej.Where, rej.Error)
	}
	if a.json() {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = errors.Join(err, enc.Encode(r))
	} else {
		fmt.Fprintf(a.env.Stderr, "%s %d keys, %s in %.1fs, %d rejected\n", verb, r.Keys, humanBytes(r.Bytes), r.DurationS, r.RejectedTotal)
	}
	if err != nil {
		return err
	}
	if r.RejectedTotal > 0 {
		return silentError{exitFailed}
	}
	return nil
}

// progressBar shows p on a terminal until stop is called: a bar if the total will be known, else only the counts.
func (a *app) progressBar(name string, p *load.Progress, total bool) (stop func()) {
	if !isTerminal(a.env.Stderr) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	bars := mpb.NewWithContext(ctx, mpb.WithOutput(a.env.Stderr.(*os.File)), mpb.WithRefreshRate(120*time.Millisecond))
	text := func(decor.Statistics) string {
		return fmt.Sprintf("%s  %d keys  %s  %d rejected ", name, p.Keys.Load(), humanBytes(p.Bytes.Load()), p.Rejected.Load())
	}
	style := mpb.NopStyle()
	if total {
		style = mpb.BarStyle()
	}
	bar := bars.New(0, style, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Any(text)), mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_MMSS)))
	var wg sync.WaitGroup
	wg.Go(func() {
		for tick := time.NewTicker(120 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				total := max(p.BytesTotal.Load(), p.Bytes.Load()+1)
				bar.SetTotal(total, false)
				bar.SetCurrent(min(p.Bytes.Load(), total-1))
			}
		}
	})
	return func() {
		bar.Abort(true)
		cancel()
		wg.Wait()
		bars.Wait()
	}
}
