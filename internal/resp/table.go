package resp

import (
	"context"
	"slices"

	"github.com/kiloraft/kiloraft/internal/auth"
)

// spec is a command. One of eval, local, block and control says how it runs; direct beside eval is a shorter way.
type spec struct {
	name  string
	arity int // as in Redis: the name counts; negative: at least so many
	// first, last and step say which arguments are keys; last is negative if counted from the end.
	first, last, step int
	write             bool
	need              auth.Need // of a command without keys
	group             string
	summary           string
	note              string // what differs from Redis

	eval   evalFunc                                   // on a view of the keys; allowed in MULTI
	direct func(r *request, ctx context.Context) bool // without one
	local  func(c *conn, a [][]byte, o *out)          // needs no cluster, ends at once
	block  func(c *conn, a [][]byte, o *out)          // after all that is in flight; takes its time
	multi  bool                                       // of a local one: allowed in MULTI
	// control runs also between MULTI and EXEC, and answers by itself.
	control func(c *conn, sp *spec, a [][]byte)

	index int
}

func (s *spec) writes() bool { return s.write }

// readsValues tells whether values are read for a command, so that it may hold much memory: not for writes that have a direct form.
func (s *spec) readsValues(args [][]byte) bool {
	if !s.write || s.direct == nil {
		return true
	}
	return s.name == "set" && len(args) > 3 && slices.ContainsFunc(args[3:], func(a []byte) bool { return is(a, "GET") })
}

func (s *spec) arityOK(n int) bool {
	return s.arity >= 0 && n == s.arity || s.arity < 0 && n >= -s.arity
}

// keysOf returns the keys among the arguments.
func (s *spec) keysOf(a [][]byte) [][]byte {
	if s.first == 0 || s.first >= len(a) || s.step == 2 && len(a)%2 == 0 { // the last: MSET without its last value
		return nil
	}
	last := s.last
	if last < 0 {
		last += len(a)
	}
	last = min(last, len(a)-1)
	if s.step == 1 {
		return a[s.first : last+1 : last+1]
	}
	var keys [][]byte
	for i := s.first; i <= last; i += s.step {
		keys = append(keys, a[i])
	}
	return keys
}

const (
	gString  = "string"
	gGeneric = "generic"
	gConn    = "connection"
	gServer  = "server"
	gTx      = "transactions"
	gOwn     = "kiloraft"
)

const (
	notePerShard = "keys in several shards: a part in each, not atomic together"
	noteValues   = "atomic for up to 1,024 keys of one shard with values of up to 4 MiB together; beyond, and in several shards, a part at a time"
	noteOneShard = "both keys in one shard, else CROSSSLOT"
	noteCAS      = "rewrites the value"
)

var table []spec

var byName = map[string]*spec{}

func init() { // the commands that describe commands need the table
	table = commands()
	for i := range table {
		table[i].index = i
		byName[table[i].name] = &table[i]
	}
}

func commands() []spec {
	key := func(name string, arity int, write bool, summary string, eval evalFunc, direct func(*request, context.Context) bool, group, note string) spec {
		return spec{name: name, arity: arity, first: 1, last: 1, step: 1, write: write, summary: summary, eval: eval, direct: direct, group: group, note: note}
	}
	keys := func(s spec, last, step int) spec {
		s.last, s.step = last, step
		return s
	}
	local := func(name string, arity int, group, summary, note string, f func(*conn, [][]byte, *out)) spec {
		return spec{name: name, arity: arity, group: group, summary: summary, note: note, local: f}
	}
	inMulti := func(s spec) spec {
		s.multi = true
		return s
	}
	block := func(name string, arity int, group, summary, note string, f func(*conn, [][]byte, *out)) spec {
		return spec{name: name, arity: arity, group: group, summary: summary, note: note, block: f}
	}
	control := func(name string, arity int, group, summary, note string, f func(*conn, *spec, [][]byte)) spec {
		return spec{name: name, arity: arity, group: group, summary: summary, note: note, control: f}
	}
	at := func(s spec, first int) spec {
		s.first, s.last = first, first
		return s
	}
	with := func(n auth.Need, s spec) spec {
		s.need = n
		return s
	}
	none, user, read := auth.NeedNone, auth.NeedUser, auth.NeedRead
	return []spec{
		key("get", 2, false, "Returns the value of a key.", evalGet, directGet, gString, ""),
		key("set", -3, true, "Sets a key, ignoring its type; NX XX GET EX PX EXAT PXAT KEEPTTL.", evalSet, directSet, gString, ""),
		key("setnx", 3, true, "Sets a key that does not exist.", evalSet, directSet, gString, ""),
		key("setex", 4, true, "Sets a key for so many seconds.", evalSet, directSet, gString, ""),
		key("psetex", 4, true, "Sets a key for so many milliseconds.", evalSet, directSet, gString, ""),
		key("getset", 3, true, "Sets a key and returns its old value.", evalSet, nil, gString, ""),
		key("getdel", 2, true, "Returns the value of a key and deletes it.", evalGetDel, nil, gString, ""),
		key("getex", -2, true, "Returns the value of a key and changes its expiry.", evalGetEx, nil, gString, noteCAS),
		keys(key("mget", -2, false, "Returns the values of keys.", evalMGet, directMGet, gString, noteValues), -1, 1),
		keys(key("mset", -3, true, "Sets keys.", evalMSet, directMSet, gString, noteValues), -1, 2),
		keys(key("msetnx", -3, true, "Sets keys if none of them exists.", evalMSet, nil, gString, "all keys in one shard, else CROSSSLOT"), -1, 2),
		key("append", 3, true, "Appends to a value.", evalAppend, nil, gString, noteCAS),
		key("strlen", 2, false, "Returns the length of a value.", evalStrlen, nil, gString, ""),
		key("getrange", 4, false, "Returns a part of a value.", evalGetRange, nil, gString, ""),
		key("substr", 4, false, "Returns a part of a value.", evalGetRange, nil, gString, ""),
		key("setrange", 4, true, "Overwrites a part of a value.", evalSetRange, nil, gString, noteCAS),
		key("incr", 2, true, "Adds 1 to an integer.", evalIncr, directIncr, gString, ""),
		key("decr", 2, true, "Subtracts 1 from an integer.", evalIncr, directIncr, gString, ""),
		key("incrby", 3, true, "Adds to an integer.", evalIncr, directIncr, gString, ""),
		key("decrby", 3, true, "Subtracts from an integer.", evalIncr, directIncr, gString, ""),
		key("incrbyfloat", 3, true, "Adds to a number.", evalIncrByFloat, nil, gString, "80-bit floats as on amd64, on every machine; decimal notation only"),

		keys(key("del", -2, true, "Deletes keys and returns how many there were.", evalDel, directDel, gGeneric, notePerShard), -1, 1),
		keys(key("unlink", -2, true, "Deletes keys and returns how many there were.", evalDel, directDel, gGeneric, notePerShard), -1, 1),
		keys(key("exists", -2, false, "Returns how many of the keys exist.", evalExists, directExists, gGeneric, notePerShard), -1, 1),
		keys(key("touch", -2, false, "Returns how many of the keys exist.", evalExists, directExists, gGeneric, notePerShard), -1, 1),
		key("type", 2, false, "Returns string or none.", evalType, nil, gGeneric, ""),
		key("expire", -3, true, "Lets a key end in so many seconds; NX XX GT LT.", evalExpire, nil, gGeneric, noteCAS),
		key("pexpire", -3, true, "Lets a key end in so many milliseconds.", evalExpire, nil, gGeneric, noteCAS),
		key("expireat", -3, true, "Lets a key end at a Unix time in seconds.", evalExpire, nil, gGeneric, noteCAS),
		key("pexpireat", -3, true, "Lets a key end at a Unix time in milliseconds.", evalExpire, nil, gGeneric, noteCAS),
		key("ttl", 2, false, "Returns the seconds that a key has left.", evalTTL, nil, gGeneric, ""),
		key("pttl", 2, false, "Returns the milliseconds that a key has left.", evalTTL, nil, gGeneric, ""),
		key("expiretime", 2, false, "Returns the Unix time when a key ends, in seconds.", evalTTL, nil, gGeneric, ""),
		key("pexpiretime", 2, false, "Returns the Unix time when a key ends, in milliseconds.", evalTTL, nil, gGeneric, ""),
		key("persist", 2, true, "Lets a key stay for ever.", evalPersist, nil, gGeneric, noteCAS),
		keys(key("rename", 3, true, "Renames a key.", evalRename, nil, gGeneric, noteOneShard), 2, 1),
		keys(key("renamenx", 3, true, "Renames a key if the new name is free.", evalRename, nil, gGeneric, noteOneShard), 2, 1),
		at(key("object", -2, false, "Returns ENCODING, REFCOUNT, IDLETIME or FREQ of a key.", evalObject, nil, gGeneric, "the encoding that Redis would choose for a new value; the rest is not counted"), 2),
		at(key("memory", -2, false, "Returns about how much memory a key takes: USAGE.", evalMemory, nil, gServer, "an estimate"), 2),
		with(read, block("scan", -2, gGeneric, "Walks through the keys: MATCH COUNT TYPE.", "in the order of keys; a cursor is known to the node that gave it, for 10 minutes", cmdScan)),
		with(read, block("keys", 2, gGeneric, "Returns the keys that match a pattern.", "an error if there are more than 100,000", cmdKeys)),
		with(read, block("dbsize", 1, gServer, "Returns the number of keys.", "counts for up to 1 s, and then extrapolates", cmdDBSize)),

		with(user, inMulti(local("ping", -1, gConn, "Answers PONG, or its argument.", "", cmdPing))),
		with(user, inMulti(local("echo", 2, gConn, "Answers its argument.", "", func(_ *conn, a [][]byte, o *out) { o.bulk(a[1]) }))),
		with(user, inMulti(local("time", 1, gServer, "Returns the node's time.", "", cmdTime))),
		with(user, inMulti(local("select", 2, gConn, "Chooses a database: there is 0.", "0 only", cmdSelect))),
		with(none, block("auth", -2, gConn, "Authenticates with user and password.", "a password alone is that of the user named default", cmdAuth)),
		with(none, block("hello", -1, gConn, "Chooses the protocol, 2 or 3.", "", cmdHello)),
		with(user, local("client", -2, gConn, "ID GETNAME SETNAME SETINFO LIST INFO KILL NO-EVICT NO-TOUCH REPLY GETREDIR TRACKINGINFO.", "no TRACKING", cmdClient)),
		with(user, local("command", -1, gServer, "Describes commands: COUNT DOCS INFO LIST GETKEYS.", "", cmdCommand)),
		with(user, local("info", -1, gServer, "Describes the node.", "", cmdInfo)),
		with(user, local("config", -2, gServer, "GET of what clients ask for, RESETSTAT.", "SET is refused", cmdConfig)),
		with(user, local("latency", -2, gServer, "LATEST, HISTORY, RESET.", "always empty", cmdEmpty)),
		with(user, local("slowlog", -2, gServer, "GET, LEN, RESET.", "always empty", cmdEmpty)),
		with(user, local("role", 1, gServer, "Returns master: any node takes writes.", "", cmdRole)),
		with(user, local("cluster", -2, gServer, "INFO MYID KEYSLOT; the rest says that cluster mode is disabled.", "no cluster protocol: any node serves any key", cmdCluster)),
		with(user, inMulti(local("readonly", 1, gConn, "Accepted; reads are always linearizable.", "", cmdNoCluster))),
		with(user, inMulti(local("readwrite", 1, gConn, "Accepted.", "", cmdNoCluster))),
		with(user, local("wait", 3, gGeneric, "Returns how many other replicas have what was acknowledged, at least.", "returns at once: an acknowledged write is on a majority", cmdWait)),

		with(user, control("multi", 1, gTx, "Begins a transaction.", "", cmdMulti)),
		with(user, control("exec", 1, gTx, "Carries it out.", "all keys, watched ones too, in one shard, else CROSSSLOT", cmdExec)),
		with(user, control("discard", 1, gTx, "Gives it up.", "", cmdDiscard)),
		with(read, control("watch", -2, gTx, "Lets EXEC fail if a key changes.", "", cmdWatch)),
		with(user, inMulti(local("unwatch", 1, gTx, "Forgets what is watched.", "", cmdUnwatch))),
		with(none, control("reset", 1, gConn, "Brings the connection back to its beginning.", "", cmdReset)),
		with(none, control("quit", -1, gConn, "Ends the connection.", "", cmdQuit)),

		key("kr.get", 2, false, "Returns value and version of a key, or null.", evalKRGet, nil, gOwn, ""),
		key("kr.cas", -4, true, "KR.CAS key ABSENT|VALUE v|VERSION n new [EX s|PX ms|EXAT t|PXAT t]: sets the key if that holds, and returns its new version, else null.", nil, directCAS, gOwn, "not in MULTI"),
		with(read, block("kr.range", -3, gOwn, "KR.RANGE start end [LIMIT n] [REV] [KEYS]: returns where to go on, or null, and keys and values of [start, end) in order. An empty end is plus infinity.", "", cmdRange)),
		with(user, local("kr.shard", 2, gOwn, "Returns the shard that owns a key, as this node knows it.", "", cmdShard)),
		with(user, block("kr.shards", -1, gOwn, "KR.SHARDS [from [limit]]: returns the shards in order.", "", cmdShards)),
	}
}
