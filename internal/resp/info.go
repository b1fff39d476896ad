package resp

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/shard"
)

// redisVersion is what clients that look at the version are told: the one whose commands these are.
const redisVersion = "7.0.15"

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }

func cmdPing(_ *conn, a [][]byte, o *out) {
	switch len(a) {
	case 1:
		o.simple("PONG")
	case 2:
		o.bulk(a[1])
	default:
		o.err(errArity("ping"))
	}
}

func cmdTime(_ *conn, _ [][]byte, o *out) {
	now := time.Now()
	o.strings(strconv.FormatInt(now.Unix(), 10), strconv.Itoa(now.Nanosecond()/1000))
}

func cmdSelect(_ *conn, a [][]byte, o *out) {
	switch n, ok := parseInt(a[1]); {
	case !ok:
		o.err(errNotInteger)
	case n != 0:
		o.err("ERR DB index is out of range")
	default:
		o.ok()
	}
}

// openDefault tells whether the user default needs no password, as in a Redis server as it comes.
func (c *conn) openDefault() bool {
	return c.greeted.How == auth.ByNothing && c.greeted.Access().Allows(auth.NeedUser)
}

func cmdAuth(c *conn, a [][]byte, o *out) {
	user, password := "default", a[len(a)-1]
	switch {
	case len(a) > 3:
		o.err(errSyntax)
		return
	case len(a) == 2 && c.openDefault():
		o.err(errNoPassword)
		return
	case len(a) == 3:
		user = string(a[1])
	}
	if text := c.loginOpen(user, password); text != "" {
		o.err(text)
		return
	}
	o.ok()
}

// loginOpen is login, but that default needs no password where security is off.
func (c *conn) loginOpen(user string, password []byte) string {
	if user == "default" && c.openDefault() {
		c.become(c.greeted)
		return ""
	}
	return c.login(user, password)
}

func cmdHello(c *conn, a [][]byte, o *out) {
	resp3 := c.resp3
	if len(a) > 1 {
		n, ok := parseInt(a[1])
		if !ok {
			o.err("ERR Protocol version is not an integer or out of range")
			return
		}
		if n < 2 || n > 3 {
			o.err("NOPROTO unsupported protocol version")
			return
		}
		resp3 = n == 3
	}
	var name *string
	var login [][]byte
	for i := 2; i < len(a); i++ {
		switch {
		case is(a[i], "AUTH") && i+2 < len(a):
			login = a[i+1 : i+3]
			i += 2
		case is(a[i], "SETNAME") && i+1 < len(a):
			s := string(a[i+1])
			if !cleanName(s) {
				o.err(errClientName)
				return
			}
			name = &s
			i++
		default:
			o.err("ERR Syntax error in HELLO option '" + clip(string(a[i]), 128) + "'")
			return
		}
	}
	if login != nil {
		if text := c.loginOpen(string(login[0]), login[1]); text != "" {
			o.err(text)
			return
		}
	}
	if c.p.limits.stranger {
		o.err(errNoAuthHello)
		return
	}
	c.resp3, o.resp3 = resp3, resp3
	proto := 2
	if resp3 {
		proto = 3
	}
	c.mu.Lock()
	c.proto = proto
	if name != nil {
		c.name = *name
	}
	c.mu.Unlock()
	o.pairs(7)
	o.str("server")
	o.str("redis")
	o.str("version")
	o.str(redisVersion)
	o.str("proto")
	o.int(int64(proto))
	o.str("id")
	o.int(int64(c.id))
	o.str("mode")
	o.str("standalone")
	o.str("role")
	o.str("master")
	o.str("modules")
	o.array(0)
}

const errClientName = "ERR Client names cannot contain spaces, newlines or special characters."

func cleanName(s string) bool {
	for i := range len(s) {
		if s[i] < '!' || s[i] > '~' {
			return false
		}
	}
	return true
}

// describe is the line of CLIENT LIST.
func (c *conn) describe() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	flags, multi, command := "N", -1, c.lastCommand
	if c.inMulti {
		flags, multi = "x", 0
	}
	if command == "" {
		command = "NULL"
	}
	now := time.Now()
	return fmt.Sprintf("id=%d addr=%s laddr=%s fd=0 name=%s age=%d idle=%d flags=%s db=0 sub=0 psub=0 ssub=0 multi=%d qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=%d oll=0 omem=0 tot-mem=0 events=r cmd=%s user=%s redir=-1 resp=%d lib-name=%s lib-ver=%s\n",
		c.id, c.nc.RemoteAddr(), c.nc.LocalAddr(), c.name, int(now.Sub(c.began).Seconds()), (now.UnixMilli()-c.last.Load())/1000, flags, multi,
		c.replyBytes, command, c.user, c.proto, c.libName, c.libVer)
}

func cmdClient(c *conn, a [][]byte, o *out) {
	n := len(a)
	switch sub := strings.ToUpper(string(a[1])); {
	case sub == "ID" && n == 2:
		o.int(int64(c.id))
	case sub == "GETNAME" && n == 2:
		if c.name == "" {
			o.null()
		} else {
			o.str(c.name)
		}
	case sub == "SETNAME" && n == 3:
		c.setText(&c.name, a[2], errClientName, o)
	case sub == "SETINFO" && n == 4:
		switch {
		case is(a[2], "LIB-NAME"):
			c.setText(&c.libName, a[3], "ERR lib-name cannot contain spaces, newlines or special characters.", o)
		case is(a[2], "LIB-VER"):
			c.setText(&c.libVer, a[3], "ERR lib-ver cannot contain spaces, newlines or special characters.", o)
		default:
			o.err("ERR Unrecognized option '" + clip(string(a[2]), 128) + "'")
		}
	case (sub == "LIST" || sub == "KILL") && !c.who.Access().Allows(auth.NeedAdmin):
		o.err("NOPERM User " + c.who.Name + " has no permissions to run the 'client|" + strings.ToLower(sub) + "' command")
	case sub == "LIST":
		var b strings.Builder
		for _, other := range c.s.connections() {
			b.WriteString(other.describe())
		}
		o.verbatim(b.String())
	case sub == "INFO" && n == 2:
		o.verbatim(c.describe())
	case sub == "KILL":
		c.s.cfg.Guard.Record(c.who, c.nc.RemoteAddr().String(), "client kill "+clip(string(bytes.Join(a[2:], []byte(" "))), 200), nil)
		c.clientKill(a, o)
	case (sub == "NO-EVICT" || sub == "NO-TOUCH") && n == 3 && (is(a[2], "ON") || is(a[2], "OFF")):
		o.ok()
	case sub == "REPLY" && n == 3:
		c.clientReply(a[2], o)
	case sub == "GETREDIR" && n == 2:
		o.int(-1)
	case sub == "TRACKINGINFO" && n == 2:
		o.pairs(3)
		o.str("flags")
		o.set(1)
		o.str("off")
		o.str("redirect")
		o.int(-1)
		o.str("prefixes")
		o.array(0)
	default:
		o.err(errSubcommand(a, "CLIENT"))
	}
}

func (c *conn) setText(field *string, v []byte, bad string, o *out) {
	if !cleanName(string(v)) || len(v) > 1024 {
		o.err(bad)
		return
	}
	c.mu.Lock()
	*field = string(v)
	c.mu.Unlock()
	o.ok()
}

func (c *conn) clientReply(mode []byte, o *out) {
	switch {
	case is(mode, "ON"):
		c.replyOff = false
		o.ok()
	case is(mode, "OFF"):
		c.replyOff = true
	case is(mode, "SKIP"):
		c.replySkip = 2 // this one and the next
	default:
		o.err(errSyntax)
	}
}

// clientKill is CLIENT KILL addr:port, or CLIENT KILL [ID n] [ADDR a] [LADDR a] [SKIPME yes|no].
func (c *conn) clientKill(a [][]byte, o *out) {
	if len(a) == 3 {
		for _, other := range c.s.connections() {
			if other.nc.RemoteAddr().String() == string(a[2]) {
				go other.kill()
				o.ok()
				return
			}
		}
		o.err("ERR No such client")
		return
	}
	if len(a)%2 != 0 || len(a) < 4 {
		o.err(errSyntax)
		return
	}
	skip, match := true, func(*conn) bool { return true }
	for i := 2; i < len(a); i += 2 {
		v, before := string(a[i+1]), match
		switch {
		case is(a[i], "ID"):
			id, ok := parseInt(a[i+1])
			if !ok || id < 1 {
				o.err("ERR client-id should be greater than 0")
				return
			}
			match = func(x *conn) bool { return before(x) && x.id == uint64(id) }
		case is(a[i], "ADDR"):
			match = func(x *conn) bool { return before(x) && x.nc.RemoteAddr().String() == v }
		case is(a[i], "LADDR"):
			match = func(x *conn) bool { return before(x) && x.nc.LocalAddr().String() == v }
		case is(a[i], "SKIPME") && (is(a[i+1], "yes") || is(a[i+1], "no")):
			skip = is(a[i+1], "yes")
		default:
			o.err(errSyntax)
			return
		}
	}
	n := int64(0)
	for _, other := range c.s.connections() {
		if match(other) && (!skip || other != c) {
			go other.kill()
			n++
		}
	}
	o.int(n)
}

func cmdConfig(c *conn, a [][]byte, o *out) {
	switch {
	case is(a[1], "GET") && len(a) > 2:
		known := [][2]string{{"appendonly", "yes"}, {"databases", "1"}, {"maxclients", strconv.Itoa(c.s.cfg.ConnsMax)}, {"maxmemory", "0"},
			{"maxmemory-policy", "noeviction"}, {"proto-max-bulk-len", strconv.Itoa(shard.ValueBytesMax)}, {"save", ""},
			{"timeout", strconv.Itoa(int(c.s.cfg.IdleTimeout.Seconds()))}, {"cluster-enabled", "no"}}
		var found [][2]string
		for _, kv := range known {
			for _, p := range a[2:] {
				if globMatch(bytes.ToLower(p), []byte(kv[0])) {
					found = append(found, kv)
					break
				}
			}
		}
		o.pairs(len(found))
		for _, kv := range found {
			o.str(kv[0])
			o.str(kv[1])
		}
	case is(a[1], "RESETSTAT") && len(a) == 2:
		o.ok()
	case is(a[1], "SET"), is(a[1], "REWRITE"):
		o.err("ERR CONFIG " + strings.ToUpper(string(a[1])) + " is not available: a node is configured by its flags and files")
	default:
		o.err(errSubcommand(a, "CONFIG"))
	}
}

// cmdEmpty is LATENCY and SLOWLOG: nothing is collected.
func cmdEmpty(_ *conn, a [][]byte, o *out) {
	switch {
	case is(a[1], "LEN"):
		o.int(0)
	case is(a[1], "RESET") && is(a[0], "LATENCY"):
		o.int(0)
	case is(a[1], "RESET"):
		o.ok()
	case is(a[1], "HISTOGRAM"):
		o.pairs(0)
	case is(a[1], "GET"), is(a[1], "LATEST"), is(a[1], "HISTORY"):
		o.array(0)
	default:
		o.err(errSubcommand(a, strings.ToUpper(string(a[0]))))
	}
}

func cmdRole(_ *conn, _ [][]byte, o *out) {
	o.array(3)
	o.str("master")
	o.int(0)
	o.array(0)
}

func cmdNoCluster(_ *conn, _ [][]byte, o *out) { o.ok() }

// cmdWait answers what a majority is, beside the leader.
func cmdWait(c *conn, a [][]byte, o *out) {
	for _, v := range a[1:] {
		if n, ok := parseInt(v); !ok || n < 0 {
			o.err(errNotInteger)
			return
		}
	}
	n := 0
	if routes, _ := c.s.cfg.KV.Map().Page(nil, 1); len(routes) == 1 {
		n = len(routes[0].Desc.Replicas) / 2
	}
	o.int(int64(n))
}

func cmdCluster(c *conn, a [][]byte, o *out) {
	switch {
	case is(a[1], "INFO"):
		o.verbatim("cluster_enabled:0\r\ncluster_state:ok\r\n")
	case is(a[1], "MYID"):
		o.str(fmt.Sprintf("%040x", c.s.cfg.Node().ID))
	case is(a[1], "KEYSLOT") && len(a) == 3:
		o.int(int64(keySlot(a[2])))
	default:
		o.err(errNoCluster)
	}
}

// keySlot is the CRC16 (XMODEM) of the key, or of what is in its first {…}, modulo 16384.
func keySlot(key []byte) uint16 {
	if i := bytes.IndexByte(key, '{'); i >= 0 {
		if j := bytes.IndexByte(key[i+1:], '}'); j > 0 {
			key = key[i+1 : i+1+j]
		}
	}
	crc := uint16(0)
	for _, c := range key {
		crc ^= uint16(c) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc % 16384
}

func cmdInfo(c *conn, a [][]byte, o *out) {
	want := func(section string) bool {
		if len(a) == 1 {
			return true
		}
		for _, s := range a[1:] {
			if is(s, section) || is(s, "all") || is(s, "default") || is(s, "everything") {
				return true
			}
		}
		return false
	}
	var b strings.Builder
	section := func(name string, lines ...string) {
		if !want(name) {
			return
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("# " + strings.ToUpper(name[:1]) + name[1:] + "\r\n" + strings.Join(lines, "\r\n") + "\r\n")
	}
	node, m := c.s.cfg.Node(), c.s.Metrics()
	up := int(time.Since(c.s.began).Seconds())
	_, port, _ := strings.Cut(c.nc.LocalAddr().String(), "]:")
	if port == "" {
		_, port, _ = strings.Cut(c.nc.LocalAddr().String(), ":")
	}
	section("server", "redis_version:"+redisVersion, "redis_mode:standalone", "kiloraft_version:"+node.Version, "kiloraft_node:"+itoa(node.ID),
		"kiloraft_name:"+node.Name, "os:"+runtime.GOOS+" "+runtime.GOARCH, "arch_bits:64", "process_id:"+strconv.Itoa(os.Getpid()),
		"tcp_port:"+port, "uptime_in_seconds:"+strconv.Itoa(up), "uptime_in_days:"+strconv.Itoa(up/86400))
	section("clients", "connected_clients:"+strconv.FormatInt(m.Connections, 10), "maxclients:"+strconv.Itoa(c.s.cfg.ConnsMax), "blocked_clients:0")
	if want("memory") {
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		section("memory", "used_memory:"+itoa(ms.HeapAlloc), "used_memory_human:"+fmt.Sprintf("%.2fM", float64(ms.HeapAlloc)/(1<<20)), "maxmemory:0",
			"client_output_buffer_bytes:"+strconv.FormatInt(m.ReplyBytes, 10))
	}
	section("persistence", "loading:0", "aof_enabled:1", "rdb_bgsave_in_progress:0")
	section("stats", "total_connections_received:"+itoa(m.Accepted), "total_commands_processed:"+itoa(c.s.calls()), "instantaneous_ops_per_sec:0",
		"rejected_connections:"+itoa(m.Refused))
	section("replication", "role:master", "connected_slaves:0")
	section("cluster", "cluster_enabled:0", "kiloraft_shards_known:"+strconv.Itoa(c.s.cfg.KV.Map().Len()))
	if len(a) > 1 && (want("commandstats")) {
		var lines []string
		c.s.Commands(func(name string, n uint64) bool {
			lines = append(lines, "cmdstat_"+name+":calls="+itoa(n))
			return true
		})
		section("commandstats", lines...)
	}
	section("keyspace")
	o.verbatim(b.String())
}

func (s *spec) flags() []string {
	var f []string
	if s.first > 0 {
		if s.write {
			f = append(f, "write")
		} else {
			f = append(f, "readonly")
		}
	}
	if s.local != nil || s.direct != nil {
		f = append(f, "fast")
	}
	return f
}

func (s *spec) describe(o *out) {
	o.array(10)
	o.str(s.name)
	o.int(int64(s.arity))
	f := s.flags()
	o.set(len(f))
	for _, x := range f {
		o.simple(x)
	}
	o.int(int64(s.first))
	o.int(int64(s.last))
	o.int(int64(s.step))
	o.set(0)
	o.array(0)
	o.array(0)
	o.array(0)
}

func (s *spec) docs(o *out) {
	o.str(s.name)
	n := 2
	if s.note != "" {
		n = 3
	}
	o.pairs(n)
	o.str("summary")
	o.str(s.summary)
	o.str("group")
	o.str(s.group)
	if s.note != "" {
		o.str("kiloraft-note")
		o.str(s.note)
	}
}

func cmdCommand(_ *conn, a [][]byte, o *out) {
	if len(a) == 1 {
		o.array(len(table))
		for i := range table {
			table[i].describe(o)
		}
		return
	}
	var chosen []*spec
	for _, name := range a[2:] {
		chosen = append(chosen, lookup(name))
	}
	switch {
	case is(a[1], "COUNT") && len(a) == 2:
		o.int(int64(len(table)))
	case is(a[1], "LIST") && len(a) == 2:
		o.array(len(table))
		for i := range table {
			o.str(table[i].name)
		}
	case is(a[1], "INFO"):
		if len(a) == 2 {
			cmdCommand(nil, a[:1], o)
			return
		}
		o.array(len(chosen))
		for _, s := range chosen {
			if s == nil {
				o.nullArray()
			} else {
				s.describe(o)
			}
		}
	case is(a[1], "DOCS"):
		if len(a) == 2 {
			chosen = chosen[:0]
			for i := range table {
				chosen = append(chosen, &table[i])
			}
		}
		n := 0
		for _, s := range chosen {
			if s != nil {
				chosen[n] = s
				n++
			}
		}
		o.pairs(n)
		for _, s := range chosen[:n] {
			s.docs(o)
		}
	case is(a[1], "GETKEYS") && len(a) > 2:
		s := chosen[0]
		if s == nil {
			o.err("ERR Invalid command specified")
			return
		}
		if !s.arityOK(len(a) - 2) {
			o.err("ERR Invalid number of arguments specified for command")
			return
		}
		keys := s.keysOf(a[2:])
		if len(keys) == 0 {
			o.err("ERR The command has no key arguments")
			return
		}
		o.array(len(keys))
		for _, k := range keys {
			o.bulk(k)
		}
	default:
		o.err(errSubcommand(a, "COMMAND"))
	}
}
