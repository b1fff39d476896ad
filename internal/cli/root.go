package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/config"
	"github.com/kiloraft/kiloraft/internal/escape"
	"github.com/kiloraft/kiloraft/shard"
)

// Env is the world a command runs in. Tests make their own.
type Env struct {
	Args    []string // without the program's name
	Environ []string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Version string // "": what the build information says
	// Dial connects to a cluster; nil: over the network.
	Dial func(context.Context, *config.Config) (client.Cluster, error)
}

// Main runs one command of the process and returns its exit code. SIGINT and SIGTERM cancel it; a second one ends it at once.
func Main(version string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // from then on signals have their default effect
	return Run(ctx, Env{Args: os.Args[1:], Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: version})
}

// Run runs one command and returns its exit code.
func Run(ctx context.Context, env Env) int {
	a := &app{env: env}
	root := a.root()
	root.SetArgs(negativeNumberLast(env.Args))
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !a.started {
		err = usageError{err} // cobra's own: unknown command or flag, wrong number of arguments
	}
	if a.cluster != nil {
		_ = a.cluster.Close()
	}
	code := exitCode(err)
	if err != nil && !errors.As(err, new(silentError)) {
		a.explain(cmd, err, code)
	}
	return code
}

// explain tells people what went wrong and what they can do.
func (a *app) explain(cmd *cobra.Command, err error, code int) {
	a.say("kiloraft: %s", strings.ReplaceAll(err.Error(), context.DeadlineExceeded.Error(), "no answer in time"))
	switch {
	case errors.Is(err, shard.ErrNotInitialized):
		a.say("Make a cluster of the nodes that wait with kiloraft cluster init.")
	case code == exitUsage && !a.started && cmd.Runnable() && !cmd.HasSubCommands():
		a.say("Usage: %s; see %s --help.", cmd.UseLine(), cmd.CommandPath())
	case code == exitUsage:
		a.say("See %s --help.", cmd.CommandPath())
	}
}

// app is what the commands of one run share.
type app struct {
	env     Env
	started bool // a command runs: errors are no longer cobra's
	cfg     *config.Loaded
	cluster client.Cluster // opened by connect
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "kiloraft",
		Short:         "A replicated, range-sharded key-value store: thousands of Raft groups in one process",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       versionString(a.env.Version),
		Example: `  kiloraft demo                                     # three nodes on this machine, 1,000 shards
  kiloraft serve --data-dir d1 --join host2:7100    # one node in the foreground
  kiloraft cluster init --shards 1000               # make a cluster of the nodes that wait
  kiloraft kv put greeting hello`,
	}
	root.SetVersionTemplate("kiloraft {{.Version}}\n")
	config.AddClientFlags(root.PersistentFlags())
	config.AddFileFlag(root.PersistentFlags())
	root.PersistentPreRunE = a.prepare
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	plainSwitches(root)
	node, shard, op := a.nodeCmd(), a.shardCmd(), a.opCmd()
	a.completeIDs(node, shard, op)
	root.AddCommand(a.serveCmd(), a.demoCmd(), a.clusterCmd(), node, shard, op, a.kvCmd(), a.benchCmd(), a.configCmd(),
		a.certCmd(), a.userCmd(), a.debugCmd(), a.versionCmd(), a.manCmd(), a.topCmd(), a.backupCmd())
	return root
}

// prepare loads the configuration before each command.
func (a *app) prepare(cmd *cobra.Command, _ []string) error {
	a.started = true
	if cmd.Name() == "help" || cmd.HasParent() && cmd.Parent().Name() == "completion" {
		return nil
	}
	l, err := config.Load(cmd.Flags(), a.env.Environ)
	if err != nil {
		return usageError{err}
	}
	if err := l.ValidateClient(); err != nil {
		return usageError{err}
	}
	a.cfg = l
	return nil
}

// plainSwitches has the help show a switch that is off by its name alone, where pflag shows --name[=true|false].
func plainSwitches(root *cobra.Command) {
	usage := root.UsageFunc()
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		out := cmd.OutOrStderr()
		var text strings.Builder
		cmd.SetOut(&text)
		err := usage(cmd)
		cmd.SetOut(out)
		for line := range strings.Lines(text.String()) {
			if !strings.Contains(line, "(default true)") {
				line = strings.Replace(line, switchMark, strings.Repeat(" ", len(switchMark)), 1)
			}
			if _, err := io.WriteString(out, line); err != nil {
				return err
			}
		}
		return err
	})
}

const switchMark = "[=true|false]"

// group is a command that only holds others.
func group(use, short string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unknown command %q for %q", args[0], cmd.CommandPath())
		}
		return cmd.Help()
	}}
	cmd.AddCommand(sub...)
	return cmd
}

// connect gives the cluster that the configuration names.
func (a *app) connect(ctx context.Context) (client.Cluster, error) {
	if a.cluster != nil {
		return a.cluster, nil
	}
	dial := a.env.Dial
	if dial == nil {
		dial = a.dialRemote
	}
	c, err := dial(ctx, &a.cfg.Config)
	if err != nil {
		return nil, err
	}
	a.cluster = c
	return c, nil
}

// request runs one bounded request: --timeout is for one request, not for a command.
func (a *app) request(ctx context.Context, f func(context.Context, client.Cluster) error) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	return f(ctx, c)
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// keyArg reads a key as people type it.
func keyArg(s string) ([]byte, error) {
	b, err := boundArg(s)
	switch {
	case err != nil:
		return nil, err
	case len(b) == 0:
		return nil, usagef("a key has at least one byte")
	case len(b) > shard.KeyBytesMax:
		return nil, usagef("a key of %d bytes: at most %d are allowed", len(b), shard.KeyBytesMax)
	}
	return b, nil
}

// boundArg reads a bound of a range or a prefix, which may be empty.
func boundArg(s string) ([]byte, error) {
	b, err := escape.Unescape(s)
	if err != nil {
		return nil, usagef("key: %w", err)
	}
	return b, nil
}

var negativeNumber = regexp.MustCompile(`^-[0-9]+$`)

// negativeNumberLast lets "kv add counter -5" mean what it says: the flag parser would take -5 for a flag. The number is the
// last argument, so it may follow a "--" at the end.
func negativeNumberLast(args []string) []string {
	i := slices.Index(args, "add")
	if i < 0 || slices.Contains(args, "--") {
		return args
	}
	n := slices.IndexFunc(args, negativeNumber.MatchString)
	if n < i {
		return args
	}
	out := slices.Delete(slices.Clone(args), n, n+1)
	return append(out, "--", args[n])
}
