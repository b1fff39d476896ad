package cli

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/config"
)

func (a *app) configCmd() *cobra.Command {
	printCmd := &cobra.Command{
		Use: "print", Args: cobra.NoArgs, Short: "Print every setting, its value and where it came from",
		Long: `Prints every setting, its value and where it came from: a flag, then KILORAFT_* in the environment, then the file given by --config, then the
default. It takes the flags of serve.`,
		Example: "  KILORAFT_LISTEN=127.0.0.1:7200 kiloraft config print --config node.yaml",
		RunE: func(*cobra.Command, []string) error {
			for _, v := range a.cfg.Strange {
				a.say("warning: %s in the environment names no setting", v)
			}
			return a.emit(a.cfg.Values, func(w io.Writer) error {
				var rows [][]string
				for _, v := range a.cfg.Values {
					rows = append(rows, []string{v.Key, showValue(v.Value), v.Origin})
				}
				return table(w, "KEY VALUE ORIGIN", rows)
			})
		},
	}
	config.AddNodeFlags(printCmd.Flags())
	printCmd.Flags().Bool("effective", true, "the values in force (always so)")
	return group("config", "The configuration", printCmd)
}

func showValue(v any) string {
	switch x := v.(type) {
	case []string:
		return "[" + strings.Join(x, ", ") + "]"
	case string:
		if x == "" {
			return `""`
		}
		return x
	}
	return fmt.Sprint(v)
}

type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Modified bool   `json:"modified"`
	Time     string `json:"time"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readVersion(linked string) versionInfo {
	v := versionInfo{Version: linked, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version == "" {
		v.Version = bi.Main.Version
	}
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func versionString(linked string) string {
	v := readVersion(linked)
	return fmt.Sprintf("%s (%s, %s)", v.Version, v.Go, v.Platform)
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Args: cobra.NoArgs, Short: "Print the version",
		RunE: func(*cobra.Command, []string) error {
			return a.emit(readVersion(a.env.Version), func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "kiloraft", versionString(a.env.Version))
				return err
			})
		},
	}
}
