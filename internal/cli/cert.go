package cli

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/certs"
)

func (a *app) certCmd() *cobra.Command {
	return group("cert", "Make an authority and certificates for a cluster", a.certCACmd(), a.certNodeCmd(), a.certClientCmd(), a.certLsCmd())
}

const day = 24 * time.Hour

// certFlags are what the commands that make certificates share.
type certFlags struct {
	dir  certs.Dir
	days int
}

func (f *certFlags) add(cmd *cobra.Command, days int) {
	cmd.Flags().StringVar(&f.dir.Path, "dir", "certs", "directory of the certificates; the authority's key is in it, so guard it")
	cmd.Flags().IntVar(&f.days, "days", days, "how long the certificate is valid")
	cmd.Flags().BoolVar(&f.dir.Replace, "force", false, "replace files that exist")
}

func (f *certFlags) valid() (time.Duration, error) {
	if f.days < 1 || f.days > 36500 {
		return 0, usagef("--days %d: want 1 to 36500", f.days)
	}
	return time.Duration(f.days) * day, nil
}

// certMade says what was made, or how to make it nevertheless.
func (a *app) certMade(file string, err error) error {
	if errors.Is(err, fs.ErrExist) {
		return usagef("%w: --force replaces it", err)
	}
	if err != nil {
		return err
	}
	a.say("%s and .key", file)
	return nil
}

// issue makes a certificate signed by the authority in the directory.
func (a *app) issue(f *certFlags, q certs.Request) (err error) {
	if err := auth.CheckName(q.Name); err != nil {
		return usageError{err}
	}
	if q.Valid, err = f.valid(); err != nil {
		return err
	}
	made, err := f.dir.Issue(q)
	return a.certMade(made.Cert, err)
}

func (a *app) certCACmd() *cobra.Command {
	var f certFlags
	cmd := &cobra.Command{
		Use: "ca", Args: cobra.NoArgs, Short: "Make an authority",
		Long: "Makes an authority: ca.crt, which nodes and clients need, and ca.key, which signs. Whoever has the key can be any node and any user.",
		RunE: func(*cobra.Command, []string) error {
			valid, err := f.valid()
			if err != nil {
				return err
			}
			return a.certMade(f.dir.MakeCA(valid))
		},
	}
	f.add(cmd, 3650)
	return cmd
}

func (a *app) certNodeCmd() *cobra.Command {
	var f certFlags
	var hosts []string
	cmd := &cobra.Command{
		Use: "node NAME", Args: cobra.ExactArgs(1), Short: "Make a node's certificate",
		Long: `Makes node-NAME.crt and .key. The certificate is valid for the hosts that the node is reached at: those of --host, which must have the host of
the node's --advertise or --listen.`,
		Example: "  kiloraft cert node n1 --host n1.example.net --host 10.0.0.1",
		RunE: func(_ *cobra.Command, args []string) error {
			return a.issue(&f, certs.Request{Name: args[0], Node: true, Hosts: hosts})
		},
	}
	f.add(cmd, 365)
	cmd.Flags().StringSliceVar(&hosts, "host", []string{"localhost", "127.0.0.1", "::1"}, "names and IP addresses of the node")
	return cmd
}

func (a *app) certClientCmd() *cobra.Command {
	var f certFlags
	cmd := &cobra.Command{
		Use: "client USER", Args: cobra.ExactArgs(1), Short: "Make a user's certificate",
		Long: "Makes client-USER.crt and .key. The user must exist in the cluster (kiloraft user add); root always does, and is the first administrator.",
		RunE: func(_ *cobra.Command, args []string) error {
			return a.issue(&f, certs.Request{Name: args[0]})
		},
	}
	f.add(cmd, 365)
	return cmd
}

// certJSON is a certificate as scripts see it.
type certJSON struct {
	File     string   `json:"file"`
	Kind     string   `json:"kind"` // authority node client
	Name     string   `json:"name"`
	Hosts    []string `json:"hosts"`
	NotAfter string   `json:"not_after"`
	DaysLeft int      `json:"days_left"`
}

func (a *app) certLsCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List the certificates of a directory",
		RunE: func(*cobra.Command, []string) error {
			files, err := filepath.Glob(filepath.Join(dir, "*.crt"))
			if err != nil {
				return err
			}
			out := []certJSON{}
			for _, f := range files {
				list, err := readCerts(f)
				if err != nil {
					return err
				}
				out = append(out, list...)
			}
			return a.emit(out, func(w io.Writer) error {
				var rows [][]string
				for _, c := range out {
					rows = append(rows, []string{c.File, c.Kind, c.Name, c.NotAfter, fmt.Sprint(c.DaysLeft), strings.Join(c.Hosts, ", ")})
				}
				return table(w, "FILE KIND NAME VALID_TO DAYS HOSTS", rows)
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "certs", "directory of the certificates")
	return cmd
}

func readCerts(file string) ([]certJSON, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []certJSON
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return out, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		kind := "client"
		switch {
		case c.IsCA:
			kind = "authority"
		case certs.IsNode(c):
			kind = "node"
		}
		hosts := slices.Clone(c.DNSNames)
		for _, ip := range c.IPAddresses {
			hosts = append(hosts, ip.String())
		}
		out = append(out, certJSON{File: file, Kind: kind, Name: c.Subject.CommonName, Hosts: append([]string{}, hosts...),
			NotAfter: c.NotAfter.UTC().Format(time.RFC3339), DaysLeft: int(time.Until(c.NotAfter) / day)})
	}
}
