package config

import (
	"fmt"
	"strings"
	"time"
)

// Reference returns the page that describes every setting: docs/configuration.md.
func Reference() string {
	var b strings.Builder
	b.WriteString(`# Configuration

Made from the code (` + "`go test ./internal/config -run TestReference -rewrite`" + `).

Each setting is a flag, a variable of the environment and a key of a file (` + "`--config`" + `, YAML or TOML; dots are nesting). A flag goes before the
environment, that before the file, that before the default. A key that is not listed here is an error in a file and a warning in the environment.
` + "`kiloraft config print`" + ` shows every value in force and where it came from. Sizes are numbers of bytes or 64KiB, 8MiB, 1GiB; durations are 500ms, 10s, 5m.
`)
	for _, part := range []struct {
		sc    scope
		title string
	}{{scopeNode, "Nodes (`kiloraft serve`)"}, {scopeClient, "All commands"}} {
		fmt.Fprintf(&b, "\n## %s\n\n| key of a file | flag | environment | default | what it is |\n|---|---|---|---|---|\n", part.title)
		for _, s := range settings {
			if s.scope == part.sc {
				fmt.Fprintf(&b, "| `%s` | `--%s` | `%s` | %s | %s |\n", s.key, FlagName(s.key), EnvName(s.key), showDefault(s.def), strings.ReplaceAll(s.usage, "|", `\|`))
			}
		}
	}
	return b.String()
}

func showDefault(v any) string {
	switch x := v.(type) {
	case string:
		if x == "" {
			return "none"
		}
	case []string:
		if len(x) == 0 {
			return "none"
		}
		return "`" + strings.Join(x, ",") + "`"
	case time.Duration:
		if x == 0 {
			return "`0s`"
		}
	case ByteSize:
		return "`" + x.String() + "`"
	}
	return fmt.Sprintf("`%v`", v)
}
