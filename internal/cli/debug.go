package cli

import "github.com/spf13/cobra"

func (a *app) debugCmd() *cobra.Command { return group("debug", "Look at the data of a stopped node") }
