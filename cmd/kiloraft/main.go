package main

import (
	"os"

	"github.com/kiloraft/kiloraft/internal/cli"
)

// version is set by the linker; without it the build information says.
var version string

func main() { os.Exit(cli.Main(version)) }
