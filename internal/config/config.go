package config

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Config is everything that can be set. The tags are the keys of files; settings (below) adds flag text and defaults.
type Config struct {
	// For commands that talk to a cluster.
	Server  []string      `mapstructure:"server"`
	Timeout time.Duration `mapstructure:"timeout"`
	Output  string        `mapstructure:"output"`
	NoColor bool          `mapstructure:"no-color"`

	// Who this process is: a node, or somebody who runs a command.
	TLS          TLS    `mapstructure:"tls"`
	User         string `mapstructure:"user"`
	PasswordFile string `mapstructure:"password-file"`

	// For nodes.
	DataDir   string   `mapstructure:"data-dir"`
	Listen    string   `mapstructure:"listen"`
	Advertise string   `mapstructure:"advertise"`
	HTTP      string   `mapstructure:"http"`
	Redis     string   `mapstructure:"redis"`
	Join      []string `mapstructure:"join"`
	Name      string   `mapstructure:"name"`
	Labels    []string `mapstructure:"labels"`
	Insecure  bool     `mapstructure:"insecure"`
	// MemoryLimit is a soft one; 0 leaves the choice to serve.
	MemoryLimit ByteSize `mapstructure:"memory-limit"`

	Log   Log   `mapstructure:"log"`
	Raft  Raft  `mapstructure:"raft"`
	Store Store `mapstructure:"store"`
	Sched Sched `mapstructure:"sched"`
	Auto  Auto  `mapstructure:"auto"`
}

// TLS names the files of certificates. With TLS.CA a process speaks TLS and nothing else.
type TLS struct {
	CA   string `mapstructure:"ca"`
	Cert string `mapstructure:"cert"`
	Key  string `mapstructure:"key"`
}

// Log says how a node logs.
type Log struct {
	Level  string `mapstructure:"level"`
	Format string `mapstructure:"format"`
	// Slow is how long an operation takes to be logged; negative: none is.
	Slow  time.Duration `mapstructure:"slow"`
	Audit string        `mapstructure:"audit"`
}

// Raft holds the timing of elections.
type Raft struct {
	ElectionTimeout   time.Duration `mapstructure:"election-timeout"`
	HeartbeatInterval time.Duration `mapstructure:"heartbeat-interval"`
	QuiesceAfter      time.Duration `mapstructure:"quiesce-after"`
}

// Store bounds the raft log. A size of 0 leaves the choice to the node.
type Store struct {
	LogSegmentSize ByteSize `mapstructure:"log-segment-size"`
	LogCacheSize   ByteSize `mapstructure:"log-cache-size"`
	LogKeepSize    ByteSize `mapstructure:"log-keep-size"`
	LogSize        ByteSize `mapstructure:"log-size"`
	OverlaySize    ByteSize `mapstructure:"overlay-size"`
}

// Sched sizes the runtime.
type Sched struct {
	Lanes        int      `mapstructure:"lanes"`
	Inflight     int      `mapstructure:"inflight"`
	InflightSize ByteSize `mapstructure:"inflight-size"`
}

// Auto says what the cluster does by itself. What counts are the settings of the node that leads the meta shard: give all nodes the same.
type Auto struct {
	SplitSize      ByteSize      `mapstructure:"split-size"`
	SplitLoad      int           `mapstructure:"split-load"`
	MergeAfter     time.Duration `mapstructure:"merge-after"`
	Balance        bool          `mapstructure:"balance"`
	BalanceLeaders bool          `mapstructure:"balance-leaders"`
	RepairAfter    time.Duration `mapstructure:"repair-after"`
}

// scope says which commands have a flag for a setting.
type scope int

const (
	scopeClient scope = iota // commands that talk to a cluster
	scopeNode                // serve
)

type setting struct {
	key   string
	scope scope
	def   any // string, bool, int, []string, time.Duration or ByteSize: also the type of the flag
	usage string
	short string
}

var settings = []setting{
	{key: "server", def: []string{"127.0.0.1:7100"}, usage: "nodes to talk to, host:port[,host:port…]; any node of the cluster will do"},
	{key: "timeout", def: 10 * time.Second, usage: "bound of one request"},
	{key: "output", def: "table", usage: "table or json", short: "o"},
	{key: "no-color", def: false, usage: "no colours on the terminal (NO_COLOR does the same)"},

	{key: "tls.ca", def: "", usage: "file with the certificates of the authorities that sign the cluster's; turns TLS on"},
	{key: "tls.cert", def: "", usage: "file with the own certificate: a node's to serve, a user's to run commands"},
	{key: "tls.key", def: "", usage: "file with the key of the own certificate"},
	{key: "user", def: "", usage: "user to be, with a password (default: the one of the certificate)"},
	{key: "password-file", def: "", usage: "file with the user's password (or $KILORAFT_PASSWORD; else asked for on a terminal)"},

	{key: "data-dir", scope: scopeNode, def: "", usage: "directory of the node's raft log and state"},
	{key: "listen", scope: scopeNode, def: "127.0.0.1:7100", usage: "address for nodes and clients, host:port"},
	{key: "advertise", scope: scopeNode, def: "", usage: "address that others reach this node at (default: the listen address)"},
	{key: "http", scope: scopeNode, def: "127.0.0.1:7180", usage: "address for health, metrics and profiles, host:port; empty: none"},
	{key: "redis", scope: scopeNode, def: "", usage: "address for Redis clients, host:port; empty: none"},
	{key: "join", scope: scopeNode, def: []string{}, usage: "other nodes, a first hint: host:port[,host:port…]"},
	{key: "name", scope: scopeNode, def: "", usage: "name shown to people (default: made from its identity)"},
	{key: "labels", scope: scopeNode, def: []string{}, usage: "key=value[,key=value…], e.g. zone=a"},
	{key: "insecure", scope: scopeNode, def: false, usage: "allow plain text, where everybody may do everything, on an address that is not this machine's own"},
	{key: "memory-limit", scope: scopeNode, def: ByteSize(0), usage: "memory that the process should take at most; near it garbage is collected more eagerly (0: GOMEMLIMIT if that is set, else three quarters of what the container or machine has)"},

	{key: "log.level", scope: scopeNode, def: "info", usage: "debug, info, warn or error"},
	{key: "log.format", scope: scopeNode, def: "text", usage: "text or json"},
	{key: "log.slow", scope: scopeNode, def: time.Second, usage: "log operations that take so long, with the stage that took longest (negative: none)"},
	{key: "log.audit", scope: scopeNode, def: "", usage: "file for the audit log, a JSON line for each action of an administrator (default: it goes to the log)"},
	{key: "raft.election-timeout", scope: scopeNode, def: time.Second, usage: "silence of a leader after which followers elect another"},
	{key: "raft.heartbeat-interval", scope: scopeNode, def: 100 * time.Millisecond, usage: "time between the heartbeats of two nodes; while no shard has anything to say, 0.3 election timeouts if that is more"},
	{key: "raft.quiesce-after", scope: scopeNode, def: time.Duration(0), usage: "how long a shard is idle before it sleeps (0s: the node's own choice, negative: never)"},
	{key: "store.log-segment-size", scope: scopeNode, def: ByteSize(0), usage: "size of one file of the raft log (0: the node's own choice)"},
	{key: "store.log-cache-size", scope: scopeNode, def: ByteSize(0), usage: "recent log entries kept in memory, all shards together (0: the node's own choice)"},
	{key: "store.log-keep-size", scope: scopeNode, def: ByteSize(0), usage: "log of a shard kept behind its checkpoint for followers that lag (0: the node's own choice)"},
	{key: "store.log-size", scope: scopeNode, def: ByteSize(0), usage: "size of the raft log from which on shards are checkpointed to free its oldest file; a restart replays up to so much (0: the node's own choice)"},
	{key: "store.overlay-size", scope: scopeNode, def: ByteSize(0), usage: "memory for what was written since the last checkpoint, over which shards are checkpointed (0: the node's own choice)"},
	{key: "sched.lanes", scope: scopeNode, def: 0, usage: "lanes of the scheduler (0: chosen from the number of cores)"},
	{key: "sched.inflight", scope: scopeNode, def: 0, usage: "writes that are taken before they are answered, over which they are refused as overloaded (0: the node's own choice)"},
	{key: "sched.inflight-size", scope: scopeNode, def: ByteSize(0), usage: "bytes of these writes, over which they are refused as overloaded (0: the node's own choice)"},
	{key: "auto.split-size", scope: scopeNode, def: ByteSize(64 << 20), usage: "a larger shard is split by itself (0: never)"},
	{key: "auto.split-load", scope: scopeNode, def: 20_000, usage: "a shard with more requests per second is split by itself (0: never)"},
	{key: "auto.merge-after", scope: scopeNode, def: time.Hour, usage: "how long neighbours must be small and cold before they are merged by themselves, if an automatic split made them (0s: never)"},
	{key: "auto.balance", scope: scopeNode, def: true, usage: "level replicas over the nodes without being asked"},
	{key: "auto.balance-leaders", scope: scopeNode, def: true, usage: "level leaders over the nodes without being asked"},
	{key: "auto.repair-after", scope: scopeNode, def: 5 * time.Minute, usage: "how long a node may be down before its replicas are replaced"},
}

// FlagName gives the flag of a key: dots become dashes.
func FlagName(key string) string { return strings.ReplaceAll(key, ".", "-") }

// EnvName gives the environment variable of a key.
func EnvName(key string) string {
	return "KILORAFT_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

var labelForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._/-]{0,62}=[a-zA-Z0-9._/-]{0,63}$`)

// ValidateClient checks what every command uses.
func (c *Config) ValidateClient() error {
	if c.Output != "table" && c.Output != "json" {
		return fmt.Errorf("output %q: want table or json", c.Output)
	}
	if c.Timeout <= 0 {
		return fmt.Errorf("timeout %v: want more than 0", c.Timeout)
	}
	if len(c.Server) == 0 {
		return fmt.Errorf("server: name at least one host:port")
	}
	switch t := &c.TLS; {
	case (t.Cert == "") != (t.Key == ""):
		return fmt.Errorf("tls.cert and tls.key go together")
	case t.Cert != "" && t.CA == "":
		return fmt.Errorf("tls.ca: name the file of the authority that the other side's certificate is signed by")
	}
	return checkAddresses("server", c.Server...)
}

// ValidateNode checks what serve uses.
func (c *Config) ValidateNode() error {
	if c.DataDir == "" {
		return fmt.Errorf("data-dir: say where the node keeps its data (--data-dir)")
	}
	if err := checkAddresses("listen", c.Listen); err != nil {
		return err
	}
	for key, addr := range map[string]string{"advertise": c.Advertise, "http": c.HTTP, "redis": c.Redis} {
		if addr == "" {
			continue
		}
		if err := checkAddresses(key, addr); err != nil {
			return err
		}
	}
	if err := checkAddresses("join", c.Join...); err != nil {
		return err
	}
	for _, l := range c.Labels {
		if !labelForm.MatchString(l) {
			return fmt.Errorf("labels: %q is no key=value", l)
		}
	}
	return c.validateTuning()
}

func (c *Config) validateTuning() error {
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("log.format %q: want text or json", c.Log.Format)
	}
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		return fmt.Errorf("log.level %q: want debug, info, warn or error", c.Log.Level)
	}
	if s := c.Log.Slow; s == 0 || s > 0 && s < time.Millisecond {
		return fmt.Errorf("log.slow %v: want at least 1ms, or a negative duration for none", s)
	}
	hb, el := c.Raft.HeartbeatInterval, c.Raft.ElectionTimeout
	if hb < 10*time.Millisecond || el < 3*hb {
		return fmt.Errorf("raft.heartbeat-interval %v and raft.election-timeout %v: want at least 10ms, and an election timeout of at least three intervals", hb, el)
	}
	if s := c.Store.LogSegmentSize; s != 0 && (s < 1<<20 || s > 4<<30) {
		return fmt.Errorf("store.log-segment-size %v: want 1MiB to 4GiB", s)
	}
	if s := c.Store.OverlaySize; s != 0 && s < 1<<20 {
		return fmt.Errorf("store.overlay-size %v: want at least 1MiB", s)
	}
	if s := c.MemoryLimit; s != 0 && s < 128<<20 {
		return fmt.Errorf("memory-limit %v: want at least 128MiB, or 0 for the default", s)
	}
	if c.Sched.Lanes < 0 || c.Sched.Lanes > 256 {
		return fmt.Errorf("sched.lanes %d: want 0 to 256", c.Sched.Lanes)
	}
	if n := c.Sched.Inflight; n < 0 || n > 16<<20 {
		return fmt.Errorf("sched.inflight %d: want 0 to %d", n, 16<<20)
	}
	if s := c.Sched.InflightSize; s != 0 && s < 16<<20 {
		return fmt.Errorf("sched.inflight-size %v: want at least 16MiB, the largest write", s)
	}
	if err := c.Auto.validate(); err != nil {
		return err
	}
	return c.validateExposure()
}

// validateExposure refuses to serve others without certificates, which would be in plain text and without any question who asks.
func (c *Config) validateExposure() error {
	if c.TLS.CA != "" && c.TLS.Cert == "" {
		return fmt.Errorf("tls.cert: a node needs a certificate of its own (kiloraft cert node)")
	}
	if c.Insecure || c.TLS.Cert != "" {
		return nil
	}
	for _, a := range [...]struct{ key, addr string }{{"listen", c.Listen}, {"http", c.HTTP}, {"redis", c.Redis}} {
		if a.addr != "" && !loopback(a.addr) {
			return fmt.Errorf("%s %s: without certificates connections are plain text, and everybody may do everything; on an address that others can reach give --tls-ca, --tls-cert and --tls-key, or say --insecure", a.key, a.addr)
		}
	}
	return nil
}

func (a *Auto) validate() error {
	switch {
	case a.SplitSize != 0 && a.SplitSize < 1<<20:
		return fmt.Errorf("auto.split-size %v: want at least 1MiB, or 0 for never", a.SplitSize)
	case a.SplitLoad != 0 && a.SplitLoad < 10:
		return fmt.Errorf("auto.split-load %d: want at least 10 requests per second, or 0 for never", a.SplitLoad)
	case a.MergeAfter != 0 && a.MergeAfter < time.Minute:
		return fmt.Errorf("auto.merge-after %v: want at least 1m, or 0s for never", a.MergeAfter)
	case a.RepairAfter < time.Second:
		return fmt.Errorf("auto.repair-after %v: want at least 1s", a.RepairAfter)
	}
	return nil
}

func checkAddresses(key string, addrs ...string) error {
	for _, a := range addrs {
		host, port, err := net.SplitHostPort(a)
		if err != nil || port == "" || host == "" && key != "listen" && key != "http" && key != "redis" {
			return fmt.Errorf("%s: %q is no host:port", key, a)
		}
		if n, err := strconv.ParseUint(port, 10, 64); err == nil && n > 65535 || errors.Is(err, strconv.ErrRange) {
			return fmt.Errorf("%s: %q: ports end at 65535", key, a)
		}
	}
	return nil
}

func loopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
