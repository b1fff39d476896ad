package resp

import (
	"fmt"
	"strings"
)

// Docs returns the page that describes the commands: docs/redis.md.
func Docs() string {
	var b strings.Builder
	b.WriteString(`# Redis clients

` + "`kiloraft serve --redis HOST:PORT`" + ` lets Redis clients in, with RESP2 and RESP3, on every node: any node serves any key. There are strings, expiry,
counters, transactions and scans; everything else answers ` + "`ERR unknown command`" + `. This page is made from the code.

- Reads are linearizable, and an acknowledged write is on a majority of its shard's replicas.
- Commands of a connection have their effects in order as far as they share keys, and replies come in order.
- What is atomic is so within one shard. ` + "`MULTI`…`EXEC`" + ` and commands with several keys answer ` + "`CROSSSLOT`" + ` if their keys are in several
  shards, except where the table says that each shard does its part.
- ` + "`CLUSTERDOWN`" + ` and ` + "`BUSY`" + ` had no effect. ` + "`UNKNOWNRESULT`" + ` says that it is not known whether a write was applied: no client may repeat it blindly.
- A key has 1 to 4096 bytes, a value up to 8 MiB.
- A connection has up to 64 MiB of commands in flight; more is read when some are done. A command whose reply, with those not taken yet, would take more than
  256 MiB answers ` + "`ERR`" + ` and changes nothing.
- Passwords, roles and TLS: [security.md](security.md). Without certificates everybody may do everything, so an address that others can reach needs
  ` + "`--insecure`" + `.
- Programs in three languages, and which clients were tried: [clients.md](clients.md).

| Command | Group | What it does | How it differs from Redis |
|---|---|---|---|
`)
	for i := range table {
		s := &table[i]
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", strings.ToUpper(s.name), s.group, strings.ReplaceAll(s.summary, "|", "\\|"), s.note)
	}
	b.WriteString(compared)
	return b.String()
}

const compared = `
## Compared with Redis
` + "`make test-full`" + ` gives 200,000 random commands, sensible ones and nonsense, transactions too, to a node and to the redis-server of Debian 12 (7.0.15) over 16
connections, and compares every reply. A million, in four parts with the seeds 1 to 4, had no unexplained difference (2026-11-25):

    KILORAFT_TEST_REDIS=1 KILORAFT_TEST_REDIS_COMMANDS=250000 KILORAFT_TEST_SEED=1 go test ./internal/resp -run TestDifferential -v

What is explained, and is therefore not compared or not generated:

| difference | why |
|---|---|
| TTL, PTTL, EXPIRETIME and PEXPIRETIME may differ by the time between the arrivals of the command at both servers | two clocks |
| keys in several shards: CROSSSLOT for RENAME, RENAMENX, MSETNX and EXEC | Redis has one shard |
| the empty key is refused; so are keys over 4096 bytes and values over 8 MiB (Redis: 512 MiB) | bounds of the store |
| in the text of "unknown command" Redis shows an argument only up to its first zero byte | a C string |
| SCAN and KEYS give keys in order; OBJECT, MEMORY, INFO, CONFIG, CLIENT, COMMAND and DBSIZE answer as the table says | they tell of the server |
`
