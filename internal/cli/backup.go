package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/backup"
	"github.com/kiloraft/kiloraft/internal/load"
	"github.com/kiloraft/kiloraft/router"
)

// storeHelp says what a STORE is.
const storeHelp = `STORE is a directory, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME. For S3 the credentials are in the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) or in the file that AWS_SHARED_CREDENTIALS_FILE names; without endpoint it is AWS_ENDPOINT_URL.`

func (a *app) backupCmd() *cobra.Command {
	return group("backup", "Back up a running cluster, check backups, restore them", a.backupCreateCmd(), a.backupLsCmd(), a.backupVerifyCmd(), a.backupRestoreCmd())
}

// routerOf gives the router client, which backups work with.
func (a *app) routerOf(ctx context.Context) (*router.Client, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	r, ok := c.(*remote)
	if !ok {
		return nil, fmt.Errorf("backup works on servers, not on %T", c)
	}
	return r.c, nil
}

func (a *app) backupCreateCmd() *cobra.Command {
	opt := backup.CreateOptions{Progress: new(load.Progress)}
	cmd := &cobra.Command{
		Use: "create STORE", Args: cobra.ExactArgs(1), Short: "Back up all keys while the cluster serves",
		Long: `Copies all keys into STORE. Each shard is copied as it was at one moment between the begin and the end of the backup; there is no
moment that is the same for all. What was acknowledged before the begin is in it. Chunks that the store has already are not stored
again; with --parent, shards that applied nothing since that backup are not even read. Needs the role admin.
` + storeHelp,
		Example: "  kiloraft backup create /var/backups/kiloraft --name monday\n  kiloraft backup create /var/backups/kiloraft --name tuesday --parent monday",
		RunE: func(cmd *cobra.Command, args []string) error {
			if opt.Name == "" {
				opt.Name = time.Now().UTC().Format("20060102T150405Z")
			}
			if err := backup.CheckName(opt.Name); err != nil {
				return usageError{err}
			}
			s, err := backup.Open(args[0])
			if err != nil {
				return usageError{err}
			}
			c, err := a.routerOf(cmd.Context())
			if err != nil {
				return err
			}
			stop := a.progressBar("backup", opt.Progress, false)
			m, err := backup.Create(cmd.Context(), c, s, opt)
			stop()
			return a.backupReport("created", m, mark(err))
		},
	}
	cmd.Flags().StringVar(&opt.Name, "name", "", "of the backup; default: the time, in UTC")
	cmd.Flags().StringVar(&opt.Parent, "parent", "", "an earlier backup in STORE; what did not change since is taken from it")
	cmd.Flags().IntVar(&opt.Parallel, "parallel", 4, "shards at a time")
	cmd.Flags().DurationVar(&opt.Patience, "patience", 2*time.Minute, "give up when a shard cannot be read for so long")
	return cmd
}

func (a *app) backupLsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ls STORE", Args: cobra.ExactArgs(1), Short: "List the backups of a store", Long: "Lists the backups of a store.\n" + storeHelp,
		Example: "  kiloraft backup ls /var/backups/kiloraft",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := backup.Open(args[0])
			if err != nil {
				return usageError{err}
			}
			names, err := backup.Names(cmd.Context(), s)
			if err != nil {
				return err
			}
			for _, n := range names {
				m, err := backup.Load(cmd.Context(), s, n)
				if err != nil {
					return err
				}
				if err := a.backupReport("", m, nil); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (a *app) backupVerifyCmd() *cobra.Command {
	var parallel int
	cmd := &cobra.Command{
		Use: "verify STORE NAME", Args: cobra.ExactArgs(2), Short: "Read a backup again and check all of it",
		Long: "Reads every chunk of a backup, checks its checksum, its keys and their order, and that the segments cover all keys, each once.\n" +
			"It needs no cluster.\n" + storeHelp,
		Example: "  kiloraft backup verify /var/backups/kiloraft monday",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := backup.Open(args[0])
			if err != nil {
				return usageError{err}
			}
			p := new(load.Progress)
			stop := a.progressBar("verify", p, true)
			m, err := backup.Verify(cmd.Context(), s, args[1], parallel, p)
			stop()
			return a.backupReport("verified", m, err)
		},
	}
	cmd.Flags().IntVar(&parallel, "parallel", 4, "segments at a time")
	return cmd
}

func (a *app) backupRestoreCmd() *cobra.Command {
	opt := backup.RestoreOptions{Progress: new(load.Progress)}
	cmd := &cobra.Command{
		Use: "restore STORE NAME", Args: cobra.ExactArgs(2), Short: "Write a backup into a cluster",
		Long: `Writes all keys of a backup into a cluster of any size, with their values and expiry times; versions are given anew. A cluster that has
keys is refused without --force, which replaces those that are in the backup and leaves the others. With --journal a restore that was
interrupted goes on where it was.
` + storeHelp,
		Example: "  kiloraft backup restore /var/backups/kiloraft monday --journal restore.journal",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := backup.Open(args[0])
			if err != nil {
				return usageError{err}
			}
			c, err := a.routerOf(cmd.Context())
			if err != nil {
				return err
			}
			st, err := a.cluster.Status(cmd.Context())
			if err != nil {
				return err
			}
			opt.Name, opt.Cluster = args[1], st.ClusterID
			stop := a.progressBar("restore", opt.Progress, true)
			m, err := backup.Restore(cmd.Context(), c, s, opt)
			stop()
			return a.backupReport("restored", m, mark(err))
		},
	}
	cmd.Flags().BoolVar(&opt.Force, "force", false, "also into a cluster that has keys")
	cmd.Flags().StringVar(&opt.Journal, "journal", "", "file that says what is done; with it a restore goes on")
	cmd.Flags().IntVar(&opt.Parallel, "parallel", 8, "chunks at a time")
	cmd.Flags().DurationVar(&opt.Patience, "patience", 2*time.Minute, "give up when a write is not taken for so long")
	return cmd
}

// backupReport prints a line about a backup; with -o json, its manifest without the segments.
func (a *app) backupReport(verb string, m *backup.Manifest, err error) error {
	if err != nil {
		return err
	}
	if a.json() {
		short := *m
		short.Segments = nil
		return json.NewEncoder(a.env.Stdout).Encode(short)
	}
	if verb != "" {
		verb += " "
	}
	t := &m.Totals
	_, err = fmt.Fprintf(a.env.Stdout, "%s%s  %s to %s  %d keys in %d segments  %s, %s stored, %s of it new\n", verb, m.Name, m.Begin.Format(time.RFC3339),
		m.End.Format(time.RFC3339), t.Keys, len(m.Segments), humanBytes(t.Raw), humanBytes(t.Stored), humanBytes(t.NewStored))
	return err
}
