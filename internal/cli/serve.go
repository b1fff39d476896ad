package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kiloraft/kiloraft/internal/config"
	"github.com/kiloraft/kiloraft/internal/fault"
	"github.com/kiloraft/kiloraft/internal/logs"
	"github.com/kiloraft/kiloraft/node"
)

// stopTimeout bounds a graceful stop: handing leaderships away and the last checkpoint. Without them nothing is lost.
const stopTimeout = 20 * time.Second

func (a *app) serveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve --data-dir D", Args: cobra.NoArgs, Short: "Run a node in the foreground",
		Long: `Runs a node in the foreground; logs go to stderr. On SIGTERM and ^C it hands its leaderships away, writes a checkpoint and exits 0; a second
signal ends it at once, which loses nothing either. A node that is in no cluster yet waits for kiloraft cluster init.
Every flag can also be given in the environment (KILORAFT_DATA_DIR …) or in a file (--config): see kiloraft config print.`,
		Example: "  kiloraft serve --data-dir d1 --listen 127.0.0.1:7101 --http 127.0.0.1:7181 --join 127.0.0.1:7102,127.0.0.1:7103",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), cmd.Flags()) },
	}
	config.AddNodeFlags(cmd.Flags())
	return cmd
}

func newLog(w io.Writer, c config.Log) *logs.Log {
	return logs.New(w, c.Format == "json", logLevel(c))
}

func logLevel(c config.Log) slog.Level {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // validated
	return level
}

// onHangup reads the configuration again at every SIGHUP until the context ends, and sets the log's level to what it says. Everything else
// takes effect with the next start.
func (a *app) onHangup(ctx context.Context, flags *pflag.FlagSet, log *logs.Log) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() { // ends with ctx
		defer signal.Stop(hangups)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				a.reload(flags, log)
			}
		}
	}()
}

func (a *app) reload(flags *pflag.FlagSet, log *logs.Log) {
	l, err := config.Load(flags, a.env.Environ)
	if err == nil {
		err = l.ValidateNode()
	}
	if err != nil {
		log.Logger().Error("the configuration was not read again", "err", err)
		return
	}
	log.SetLevel(logLevel(l.Log))
	log.Logger().Info("configuration read again", "level", l.Log.Level)
}

func nodeConfig(c *config.Loaded, log *logs.Log) node.Config {
	nc := node.Config{DataDir: c.DataDir, Listen: c.Listen, Advertise: c.Advertise, HTTP: c.HTTP, Redis: c.Redis, Join: c.Join, Name: c.Name,
		Labels: map[string]string{}, Lanes: c.Sched.Lanes, InflightMax: c.Sched.Inflight, InflightBytesMax: int64(c.Sched.InflightSize), ElectionTimeout: c.Raft.ElectionTimeout, HeartbeatInterval: c.Raft.HeartbeatInterval,
		QuiesceAfter: c.Raft.QuiesceAfter, LogSegmentBytes: int64(c.Store.LogSegmentSize), LogCacheBytes: int64(c.Store.LogCacheSize),
		LogKeepBytes: int64(c.Store.LogKeepSize), LogBytesMax: int64(c.Store.LogSize), OverlayBytesMax: int64(c.Store.OverlaySize),
		Logs: log, TLSCA: c.TLS.CA, TLSCert: c.TLS.Cert, TLSKey: c.TLS.Key, AuditLog: c.Log.Audit,
		SlowAfter: c.Log.Slow, Settings: c.Public}
	nc.AutoSplitSize, nc.AutoSplitLoad, nc.AutoMergeAfter = orNever(int64(c.Auto.SplitSize)), orNever(int64(c.Auto.SplitLoad)), orNever(c.Auto.MergeAfter)
	nc.NoReplicaBalance, nc.NoLeaderBalance, nc.RepairAfter = !c.Auto.Balance, !c.Auto.BalanceLeaders, c.Auto.RepairAfter
	for _, l := range c.Labels {
		k, v, _ := strings.Cut(l, "=")
		nc.Labels[k] = v
	}
	return nc
}

// orNever turns the 0 of a setting, never, into a node's.
func orNever[T ~int64](v T) T {
	if v == 0 {
		return -1
	}
	return v
}

func (a *app) serve(ctx context.Context, flags *pflag.FlagSet) error {
	if err := a.cfg.ValidateNode(); err != nil {
		return usageError{err}
	}
	logs := newLog(a.env.Stderr, a.cfg.Log)
	log := logs.Logger()
	a.onHangup(ctx, flags, logs)
	for _, v := range a.cfg.Strange {
		log.Warn("environment variable names no setting", "name", v)
	}
	if dir := fault.Armed(); dir != "" {
		log.Warn("fault points are armed: this process kills itself when a test wants it", "dir", dir)
	}
	limitMemory(log, int64(a.cfg.MemoryLimit), os.Getenv("GOMEMLIMIT"), memoryThere)
	log.Info("starting", "version", versionString(a.env.Version), "data_dir", a.cfg.DataDir)
	n, err := openNode(ctx, nodeConfig(a.cfg, logs))
	if err != nil {
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			return nil // told to stop while it started
		}
		if errors.Is(err, node.ErrConfig) {
			return usageError{err}
		}
		return err
	}
	notify(log, daemon.SdNotifyReady)
	watch(ctx, log, n.Live)
	notify(log, daemon.SdNotifyStopping)
	log.Info("stopping: handing leaderships away, then a checkpoint")
	begin := time.Now()
	closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := n.Close(closeCtx); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	log.Info("stopped", "took", time.Since(begin).Round(time.Millisecond))
	return nil
}

// notify tells the service manager, if there is one (sd_notify(3)).
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("telling the service manager", "state", state, "err", err)
	}
}

// watch waits for ctx to end. If the service manager wants to hear that the process works, it hears so while live says nothing.
func watch(ctx context.Context, log *slog.Logger, live func() error) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the service manager's watchdog", "err", err)
	}
	if every <= 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		if err := live(); err == nil {
			notify(log, daemon.SdNotifyWatchdog)
		} else {
			log.Error("this process does not work", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// openNode opens a node; a signal interrupts opening, but does not reach into the open node: that one is closed in order.
func openNode(ctx context.Context, cfg node.Config) (*node.Node, error) {
	openCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	n, err := node.Open(openCtx, cfg)
	stop()
	if err != nil {
		cancel()
		return nil, err
	}
	return n, nil
}
