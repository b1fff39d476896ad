package cli

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCmd writes man pages; packages call it.
func (a *app) manCmd() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Args: cobra.ExactArgs(1), Short: "Write the man pages, one for each command, into a directory",
		Example: "  kiloraft man /usr/local/share/man/man1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			date := time.Unix(0, 0) // pages of one version are equal, whenever they are written
			head := &doc.GenManHeader{Title: "KILORAFT", Section: "1", Source: "kiloraft " + readVersion(a.env.Version).Version, Manual: "kiloraft", Date: &date}
			if err := doc.GenManTree(root, head, args[0]); err != nil {
				return fmt.Errorf("writing man pages into %s: %w", args[0], err)
			}
			return nil
		},
	}
}
