// Package cli is the command tree of kiloraft: what each command reads, prints and exits with.
//
// Guarantees: data goes to stdout and everything else to stderr; with -o json stdout is exactly one JSON document; the exit code
// says what happened (exit.go is the only place that decides it); keys and values are shown escaped (package escape) except by kv
// get and kv export, which give the raw bytes. Commands know a cluster only by client.Cluster, so that tests walk the whole tree
// against one in memory.
//
// It may import everything but cmd.
package cli
