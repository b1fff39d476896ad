package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/escape"
	"github.com/kiloraft/kiloraft/internal/load"
)

const keysHelp = `Keys are raw bytes: \xNN stands for a byte and \\ for a backslash, in arguments as in what is shown. Values are never unescaped.`

func (a *app) kvCmd() *cobra.Command {
	cmd := group("kv", "Read and write keys", a.kvGetCmd(), a.kvPutCmd(), a.kvDelCmd(), a.kvCasCmd(), a.kvAddCmd(), a.kvScanCmd(),
		a.kvImportCmd(), a.kvExportCmd())
	cmd.Long = cmd.Short + ".\n\n" + keysHelp
	return cmd
}

// itemJSON is a key with its value as scripts see them.
type itemJSON struct {
	Key     string  `json:"key"`
	Value   *string `json:"value,omitempty"`
	Version uint64  `json:"version,omitempty"`
}

func toItemJSON(it client.Item, withValue bool) itemJSON {
	j := itemJSON{Key: escape.String(it.Key), Version: it.Version}
	if withValue {
		v := escape.String(it.Value)
		j.Value = &v
	}
	return j
}

func (a *app) kvGetCmd() *cobra.Command {
	return &cobra.Command{
		Use: "get KEY", Args: cobra.ExactArgs(1), Short: "Print the raw value of a key",
		Long:    "Prints the raw value of a key, and a newline only on a terminal. Exit 3 if there is no such key.\n\n" + keysHelp,
		Example: "  kiloraft kv get greeting\n  kiloraft kv get 'user\\x00one'",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := keyArg(args[0])
			if err != nil {
				return err
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				it, err := c.Get(ctx, key)
				if err != nil {
					return fmt.Errorf("key %s: %w", shorten(escape.String(key), 60), err)
				}
				it.Key = key
				return a.emit(toItemJSON(it, true), func(w io.Writer) error {
					if isTerminal(w) {
						it.Value = append(it.Value, '\n')
					}
					_, err := w.Write(it.Value)
					return err
				})
			})
		},
	}
}

// written is what a write prints for scripts.
type written struct {
	Key     string `json:"key"`
	Version uint64 `json:"version"`
}

func (a *app) kvPutCmd() *cobra.Command {
	return &cobra.Command{
		Use: "put KEY VALUE|-", Args: cobra.ExactArgs(2), Short: "Write a key",
		Long:    "Writes a key. The value - reads standard input to its end.\n\n" + keysHelp,
		Example: "  kiloraft kv put greeting hello\n  kiloraft kv put picture - < picture.png",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := keyArg(args[0])
			if err != nil {
				return err
			}
			value := []byte(args[1])
			if args[1] == "-" {
				if value, err = readValue(a.env.Stdin); err != nil {
					return err
				}
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				version, err := c.Put(ctx, key, value)
				if err != nil {
					return fmt.Errorf("key %s: %w", shorten(escape.String(key), 60), err)
				}
				return a.emit(written{escape.String(key), version}, func(io.Writer) error { return nil })
			})
		},
	}
}

// stdinBytesMax is above the limit of a value, so that the cluster says what the limit is.
const stdinBytesMax = 16 << 20

func readValue(r io.Reader) ([]byte, error) {
	value, err := io.ReadAll(io.LimitReader(r, stdinBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("reading the value from standard input: %w", err)
	}
	if len(value) > stdinBytesMax {
		return nil, fmt.Errorf("%w: the value on standard input is over %d bytes", client.ErrInvalid, stdinBytesMax)
	}
	return value, nil
}

func (a *app) kvDelCmd() *cobra.Command {
	return &cobra.Command{
		Use: "del KEY…", Args: cobra.MinimumNArgs(1), Short: "Delete keys; an absent key is no error",
		RunE: func(cmd *cobra.Command, args []string) error {
			keys := make([][]byte, len(args))
			for i, s := range args {
				var err error
				if keys[i], err = keyArg(s); err != nil {
					return err
				}
			}
			for i, key := range keys {
				err := a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error { return c.Delete(ctx, key) })
				if err != nil {
					return fmt.Errorf("key %s (%d of %d deleted): %w", shorten(escape.String(key), 60), i, len(keys), err)
				}
			}
			v := struct {
				Deleted int `json:"deleted"`
			}{len(keys)}
			return a.emit(v, func(io.Writer) error { return nil })
		},
	}
}

func (a *app) kvCasCmd() *cobra.Command {
	var expect, value string
	var absent bool
	cmd := &cobra.Command{
		Use: "cas KEY --expect V|--absent --value V", Args: cobra.ExactArgs(1), Short: "Write a key only if it has the expected value",
		Long: "Writes a key only if its value equals --expect, or with --absent only if there is none. Exit 1 if that does not hold; then\n" +
			"nothing was changed.\n\n" + keysHelp,
		Example: "  kiloraft kv cas lock --absent --value me",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := keyArg(args[0])
			if err != nil {
				return err
			}
			f := cmd.Flags()
			if f.Changed("expect") == absent {
				return usagef("say either --expect V or --absent")
			}
			if !f.Changed("value") {
				return usagef("--value: say what to write")
			}
			var want []byte
			if !absent {
				want = append([]byte{}, expect...)
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				version, err := c.CompareAndSwap(ctx, key, want, []byte(value))
				if errors.Is(err, client.ErrCondition) {
					err = client.ErrCondition
				}
				if err != nil {
					return fmt.Errorf("key %s: %w", shorten(escape.String(key), 60), err)
				}
				return a.emit(written{escape.String(key), version}, func(io.Writer) error { return nil })
			})
		},
	}
	cmd.Flags().StringVar(&expect, "expect", "", "value that the key must have")
	cmd.Flags().BoolVar(&absent, "absent", false, "the key must not exist")
	cmd.Flags().StringVar(&value, "value", "", "value to write")
	return cmd
}

func (a *app) kvAddCmd() *cobra.Command {
	return &cobra.Command{
		Use: "add KEY N", Args: cobra.ExactArgs(2), Short: "Add to a counter and print the sum",
		Long:    "Adds a number, which may be negative, to the decimal number that is the value of a key, and prints the sum. An absent key counts\nas 0. Retries never add twice.\n\n" + keysHelp,
		Example: "  kiloraft kv add visits 1",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := keyArg(args[0])
			if err != nil {
				return err
			}
			delta, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return usagef("%q is no integer of 64 bits", args[1])
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				sum, err := c.Add(ctx, key, delta)
				if err != nil {
					return fmt.Errorf("key %s: %w", shorten(escape.String(key), 60), err)
				}
				v := struct {
					Key   string `json:"key"`
					Value int64  `json:"value"`
				}{escape.String(key), sum}
				return a.emit(v, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, sum)
					return err
				})
			})
		},
	}
}

func (a *app) kvScanCmd() *cobra.Command {
	var prefix, start, end string
	var r client.Range
	cmd := &cobra.Command{
		Use: "scan", Args: cobra.NoArgs, Short: "Print keys and values in order, as key<TAB>value",
		Long: "Prints keys and values in order, as key<TAB>value with both escaped. Bounds: --start is included, --end is not.\n\n" + keysHelp,
		Example: `  kiloraft kv scan --prefix user/ --limit 10
  kiloraft kv scan --start a --end b --reverse`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := cmd.Flags()
			if f.Changed("prefix") && (f.Changed("start") || f.Changed("end")) {
				return usagef("say either --prefix or --start and --end")
			}
			if r.Limit < 0 {
				return usagef("--limit %d: want 0 or more", r.Limit)
			}
			var err error
			for text, to := range map[*string]*[]byte{&start: &r.Start, &end: &r.End} {
				if *to, err = boundArg(*text); err != nil {
					return err
				}
			}
			if f.Changed("prefix") {
				if r.Start, err = boundArg(prefix); err != nil {
					return err
				}
				r.End = load.PrefixEnd(r.Start)
			}
			return a.scan(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&prefix, "prefix", "", "only keys that begin so")
	f.StringVar(&start, "start", "", "first key")
	f.StringVar(&end, "end", "", "key before which to stop")
	f.IntVar(&r.Limit, "limit", 0, "at most so many (0: all)")
	f.BoolVar(&r.Reverse, "reverse", false, "from the last key to the first")
	f.BoolVar(&r.KeysOnly, "keys-only", false, "no values")
	return cmd
}

// scan streams. --timeout bounds the wait for the next item, since the whole may be long.
func (a *app) scan(ctx context.Context, r client.Range) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(a.env.Stdout, 64<<10)
	var out scanWriter = &scanLines{w: w, keysOnly: r.KeysOnly}
	if a.json() {
		out = &scanJSON{w: w, keysOnly: r.KeysOnly}
	}
	ctx, progress, stop := client.IdleTimeout(ctx, a.cfg.Timeout)
	defer stop()
	for it, err := range c.Scan(ctx, r) {
		if err != nil {
			_ = w.Flush()
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		progress()
		if err := out.item(it); err != nil {
			return err
		}
	}
	if err := out.end(); err != nil {
		return err
	}
	return w.Flush()
}

type scanWriter interface {
	item(client.Item) error
	end() error
}

type scanLines struct {
	w        *bufio.Writer
	keysOnly bool
	buf      []byte
}

func (s *scanLines) item(it client.Item) error {
	s.buf = escape.Append(s.buf[:0], it.Key)
	if !s.keysOnly {
		s.buf = append(s.buf, '\t')
		s.buf = escape.Append(s.buf, it.Value)
	}
	_, err := s.w.Write(append(s.buf, '\n'))
	return err
}

func (s *scanLines) end() error { return nil }
