// Command kiloraft is the one binary of kiloraft: node, client, demo, benchmark and offline tools. Everything is in internal/cli.
package main
