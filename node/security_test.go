package node_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// secured is a cluster with certificates and one user of each kind. Their passwords are password-of-<name>.
type secured struct {
	*nodetest.Cluster
	t     *testing.T
	certs *nodetest.Certs
	audit string // file of the first node
}

func startSecured(t *testing.T, nodes, shards int) *secured {
	t.Helper()
	s := &secured{t: t, certs: nodetest.NewCerts(t), audit: filepath.Join(t.TempDir(), "audit.log")}
	s.Cluster = nodetest.Start(t, nodes, nodetest.Options{Config: func(i int, cfg *node.Config) {
		s.certs.Node(cfg)
		cfg.Redis = "127.0.0.1:0"
		if i == 0 {
			cfg.AuditLog = s.audit
		}
	}})
	s.Init(0, shards, nodes)
	for name, g := range map[string]auth.Grant{"reader": {Role: auth.RoleRead}, "writer": {Role: auth.RoleWrite}, "admin": {Role: auth.RoleAdmin},
		"app": {Role: auth.RoleWrite, Prefix: []byte("app/")}} {
		s.setUser(&api.UserRequest{Action: api.UserAdd, Name: name, Password: []byte("password-of-" + name), Grants: []auth.Grant{g}})
	}
	return s
}

// setUser changes a user as root does.
func (s *secured) setUser(q *api.UserRequest) {
	s.t.Helper()
	root := s.dial("root")
	defer root.Close()
	if _, err := ask(s.t, root, api.MethodUserSet, 0, q.Append(nil)); err != nil {
		s.t.Fatal(q.Name, err)
	}
}

func (s *secured) dialAs(cfg transport.ClientConfig) (*transport.ClientConn, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	return transport.DialClient(ctx, s.Addrs()[0], cfg)
}

// dial connects as a user with its password; as root and as a node with a certificate.
func (s *secured) dial(who string) *transport.ClientConn {
	s.t.Helper()
	cfg := transport.ClientConfig{TLS: s.certs.Client(""), User: who, Password: []byte("password-of-" + who)}
	switch who {
	case "root":
		cfg = transport.ClientConfig{TLS: s.certs.Client("root")}
	case "node":
		cfg = transport.ClientConfig{TLS: s.certs.AsNode()}
	}
	c, err := s.dialAs(cfg)
	if err != nil {
		s.t.Fatal(who, err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// The ranks: who may do something, those behind may too.
var ranks = []string{"nobody", "reader", "writer", "admin", "node"}

func mayFrom(lowest, who string) bool { return slices.Index(ranks, who) >= slices.Index(ranks, lowest) }

// methodMay says who may call each method, at least. A new method without an entry fails the test.
var methodMay = map[string]string{
	"MethodRead": "reader", "MethodScan": "reader", "MethodRouteRead": "reader", "MethodRouteScan": "reader",
	"MethodWrite": "writer", "MethodRouteWrite": "writer",
	"MethodMap": "reader", "MethodNodeInfo": "reader", "MethodReplicas": "reader", "MethodNodes": "reader", "MethodShards": "reader",
	"MethodOps": "reader", "MethodPlan": "reader", "MethodStatus": "reader", "MethodPassword": "reader", "MethodWhoAmI": "reader",
	"MethodChecksum": "admin", "MethodTransfer": "admin", "MethodInit": "admin", "MethodOpStart": "admin", "MethodOpCancel": "admin",
	"MethodNodeSet": "admin", "MethodUsers": "admin", "MethodUserSet": "admin", "MethodInspect": "admin", "MethodCut": "admin",
	"MethodReserve": "node", "MethodStart": "node", "MethodJoin": "node", "MethodCreate": "node",
	"methodHello": "node", "methodReserve": "node", "methodStart": "node", "methodSync": "node", "methodDrive": "node", "methodLeads": "node",
	"methodChange": "node", "methodRemove": "node", "methodEvacuate": "node", "methodLearn": "node", "methodSplit": "node", "methodSample": "node", "methodSamples": "node", "methodLoads": "node", "methodRates": "node",
	"methodMerge": "node",
}

// declaredMethods finds the methods in the source: constants with such a name and a number.
func declaredMethods(t *testing.T) map[string]uint16 {
	t.Helper()
	out := map[string]uint16{}
	for _, dir := range []string{".", "../router/api"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				spec, ok := n.(*ast.ValueSpec)
				if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 || !strings.HasPrefix(strings.ToLower(spec.Names[0].Name), "method") {
					return true
				}
				if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.INT {
					v, err := strconv.ParseUint(lit.Value, 0, 16)
					if err != nil {
						t.Fatal(err)
					}
					out[spec.Names[0].Name] = uint16(v)
				}
				return true
			})
		}
	}
	if len(out) < 30 {
		t.Fatalf("found only %d methods: is the test looking in the right place?", len(out))
	}
	return out
}

// bodyOf is a request that is well formed where that decides who may.
func bodyOf(method uint16) []byte {
	k := [][]byte{[]byte("k")}
	w := &shard.Write{Ops: []shard.Op{{Kind: shard.OpPut, Key: k[0], Value: k[0]}}}
	switch method {
	case api.MethodRead, api.MethodRouteRead:
		return shard.AppendRead(nil, &shard.Read{Keys: k})
	case api.MethodScan, api.MethodRouteScan:
		return shard.AppendScan(nil, &shard.Scan{})
	case api.MethodWrite, api.MethodRouteWrite:
		return shard.AppendWrite(nil, w)
	}
	return []byte{0xc1} // no msgpack: nothing is carried out
}

// Every method, as everybody.
func TestWhoMayCall(t *testing.T) {
	s := startSecured(t, 1, 4)
	methods := declaredMethods(t)
	for name := range methodMay {
		if _, ok := methods[name]; !ok {
			t.Errorf("%s is in the table, and not in the code", name)
		}
	}
	conns := map[string]*transport.ClientConn{}
	for _, who := range ranks[1:] {
		conns[who] = s.dial(who)
	}
	for name, method := range methods {
		lowest, ok := methodMay[name]
		if !ok {
			t.Errorf("%s: say in methodMay who may call it, and in needs what it takes", name)
			continue
		}
		for who, conn := range conns {
			_, err := ask(t, conn, method, 0, bodyOf(method))
			if denied := errors.Is(err, shard.ErrDenied); denied == mayFrom(lowest, who) {
				t.Errorf("%s as %s: %v", name, who, err)
			}
		}
	}
	for _, unknown := range []uint16{0, 7, 200, 255, 256, 65535} {
		if _, err := ask(t, conns["admin"], unknown, 0, nil); !errors.Is(err, shard.ErrDenied) {
			t.Errorf("unknown method %d: %v", unknown, err)
		}
	}
	// Nobody does not get as far as a method.
	for name, cfg := range map[string]transport.ClientConfig{
		"nothing shown": {TLS: s.certs.Client("")}, "no password": {TLS: s.certs.Client(""), User: "admin"},
		"wrong password":   {TLS: s.certs.Client(""), User: "reader", Password: []byte("password-of-admin")},
		"unknown user":     {TLS: s.certs.Client(""), User: "nobody", Password: []byte("password-of-nobody")},
		"unknown name":     {TLS: s.certs.Client("stranger")},
		"another's name":   {TLS: s.certs.Client("reader"), User: "admin"},
		"root by password": {TLS: s.certs.Client(""), User: "root", Password: []byte("password-of-root")},
	} {
		c, err := s.dialAs(cfg)
		var ref *transport.Refused
		if !errors.As(err, &ref) || ref.Reason != transport.ReasonDenied {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			c.Close()
		}
	}
	if c, err := s.dialAs(transport.ClientConfig{Limits: transport.Limits{HandshakeTimeout: time.Second}}); err == nil {
		c.Close()
		t.Error("served without TLS")
	}
}

// A user of some keys gets those, in every form of asking, and nobody but nodes gets the meta shard.
func TestPrefixes(t *testing.T) {
	s := startSecured(t, 1, 1)
	app, admin := s.dial("app"), s.dial("admin")
	read := func(keys ...string) []byte {
		r := &shard.Read{}
		for _, k := range keys {
			r.Keys = append(r.Keys, []byte(k))
		}
		return shard.AppendRead(nil, r)
	}
	scan := func(start, end string) []byte {
		return shard.AppendScan(nil, &shard.Scan{Start: []byte(start), End: []byte(end)})
	}
	write := func(cond string, ops ...shard.Op) []byte {
		w := &shard.Write{Ops: ops}
		if cond != "" {
			w.Conditions = []shard.Condition{{Kind: shard.ConditionAbsent, Key: []byte(cond)}}
		}
		return shard.AppendWrite(nil, w)
	}
	put := func(key string) shard.Op { return shard.Op{Kind: shard.OpPut, Key: []byte(key), Value: []byte("v")} }
	clear := func(start, end string) shard.Op {
		return shard.Op{Kind: shard.OpDeleteRange, Key: []byte(start), End: []byte(end)}
	}
	for i, c := range []struct {
		method uint16
		body   []byte
		may    bool
	}{
		{api.MethodRouteRead, read("app/a"), true}, {api.MethodRouteRead, read("app/a", "apq"), false}, {api.MethodRouteRead, read("x", "app/a"), false},
		{api.MethodRouteScan, scan("app/", "app0"), true}, {api.MethodRouteScan, scan("app/", ""), false}, {api.MethodRouteScan, scan("", "app0"), false},
		{api.MethodRouteWrite, write("", put("app/a")), true}, {api.MethodRouteWrite, write("", put("app/a"), put("b")), false},
		{api.MethodRouteWrite, write("other", put("app/n")), false}, {api.MethodRouteWrite, write("app/n", put("app/n")), true},
		{api.MethodRouteWrite, write("", clear("app/", "app0")), true}, {api.MethodRouteWrite, write("", clear("app/", "")), false},
		{api.MethodRead, read("x"), false}, {api.MethodScan, scan("", ""), false}, {api.MethodWrite, write("", put("x")), false},
		{api.MethodRouteWrite, []byte{0xc1}, false},
	} {
		_, err := ask(t, app, c.method, 0, c.body)
		if (err == nil) != c.may || !c.may && !errors.Is(err, shard.ErrDenied) && !errors.Is(err, shard.ErrInvalid) {
			t.Errorf("case %d: %v", i, err)
		}
	}
	meta := shard.AppendRead(nil, &shard.Read{Shard: shard.MetaShardID, Version: 1, Keys: [][]byte{[]byte("user/admin")}})
	if _, err := ask(t, admin, api.MethodRead, 0, meta); !errors.Is(err, shard.ErrDenied) {
		t.Errorf("the hashes of passwords can be read: %v", err)
	}
	all := shard.AppendScan(nil, &shard.Scan{Shard: shard.MetaShardID, Version: 1})
	if _, err := ask(t, admin, api.MethodScan, 0, all); !errors.Is(err, shard.ErrDenied) {
		t.Errorf("the meta shard can be read: %v", err)
	}
}

// Changed users change what connections may do that exist.
func TestRevocation(t *testing.T) {
	s := startSecured(t, 3, 3)
	get := shard.AppendRead(nil, &shard.Read{Keys: [][]byte{[]byte("k")}})
	var readers []*transport.ClientConn // at each node
	for _, addr := range s.Addrs() {
		c, err := transport.DialClient(t.Context(), addr, transport.ClientConfig{TLS: s.certs.Client(""), User: "reader", Password: []byte("password-of-reader")})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := ask(t, c, api.MethodRouteRead, 0, get); err != nil {
			t.Fatal(err)
		}
		readers = append(readers, c)
	}
	denied := func(what string) {
		t.Helper()
		for i, c := range readers { // the change is answered when all nodes have been told
			nodetest.Eventually(t, 35*time.Second, func() error {
				if _, err := ask(t, c, api.MethodRouteRead, 0, get); !errors.Is(err, shard.ErrDenied) {
					return fmt.Errorf("%s: node %d: %v", what, i+1, err)
				}
				return nil
			})
		}
	}
	s.setUser(&api.UserRequest{Action: api.UserGrant, Name: "reader", Grants: []auth.Grant{{Role: auth.RoleNone}}})
	denied("a role taken")
	s.setUser(&api.UserRequest{Action: api.UserGrant, Name: "reader", Grants: []auth.Grant{{Role: auth.RoleRead}}})
	for _, c := range readers {
		if _, err := ask(t, c, api.MethodRouteRead, 0, get); err != nil {
			t.Error("a role given back:", err)
		}
	}
	s.setUser(&api.UserRequest{Action: api.UserPassword, Name: "reader", Password: []byte("another one")})
	denied("another password")
	s.setUser(&api.UserRequest{Action: api.UserRemove, Name: "reader"})
	if _, err := s.dialAs(transport.ClientConfig{TLS: s.certs.Client(""), User: "reader", Password: []byte("another one")}); err == nil {
		t.Error("a user who was removed comes in")
	}
	root := s.dial("root")
	for _, bad := range []api.UserRequest{{Action: api.UserAdd, Name: "admin"}, {Action: api.UserAdd, Name: "a b"}, {Action: api.UserAdd, Name: "root"},
		{Action: api.UserGrant, Name: "root", Grants: []auth.Grant{{Role: auth.RoleRead}}}, {Action: api.UserAdd, Name: "x", Password: []byte("short")}, {Action: 9, Name: "admin"},
		{Action: api.UserAdd, Name: "x", Grants: []auth.Grant{{Role: auth.RoleAdmin, Prefix: []byte("p")}}}} {
		if _, err := ask(t, root, api.MethodUserSet, 0, bad.Append(nil)); !errors.Is(err, shard.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := ask(t, root, api.MethodUserSet, 0, (&api.UserRequest{Action: api.UserPassword, Name: "gone", Password: []byte("password1")}).Append(nil)); !errors.Is(err, shard.ErrNotFound) {
		t.Error(err)
	}
	s.checkAudit()
}

// checkAudit reads the audit log: who did what, and no password.
func (s *secured) checkAudit() {
	s.t.Helper()
	b, err := os.ReadFile(s.audit)
	if err != nil {
		s.t.Fatal(err)
	}
	text := string(b)
	for _, want := range []string{`"user":"root"`, `"by":"certificate"`, `add user \"app\" write:\"app/\"`, `remove user \"reader\"`, `"result":"done"`, `"result":"failed: `} {
		if !strings.Contains(text, want) {
			s.t.Errorf("the audit log has no %s", want)
		}
	}
	for _, secret := range []string{"password-of", "another one", "argon2"} {
		if strings.Contains(text, secret) {
			s.t.Errorf("the audit log has %q", secret)
		}
	}
}

// TestAuditLogIsNotFilled: what somebody asks for who may not do it gets into the audit log, but not all of it.
func TestAuditLogIsNotFilled(t *testing.T) {
	s := startSecured(t, 1, 1)
	q := &api.UserRequest{Action: api.UserGrant, Name: "victim"}
	for i := range auth.GrantsMax {
		q.Grants = append(q.Grants, auth.Grant{Role: auth.RoleRead, Prefix: fmt.Appendf(nil, "%d%s", i, strings.Repeat("\n\xff", 1000))})
	}
	if _, err := ask(t, s.dial("reader"), api.MethodUserSet, 0, q.Append(nil)); !errors.Is(err, shard.ErrDenied) {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.audit)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	last := lines[len(lines)-1]
	var line struct{ User, Action, Result string }
	if err := json.Unmarshal([]byte(last), &line); err != nil || line.User != "reader" || line.Result != "denied" || !strings.HasPrefix(line.Action, `change roles of user "victim"`) {
		t.Errorf("%v in %.200s", err, last)
	}
	if len(last) > 4<<10 {
		t.Errorf("a line of %d bytes", len(last))
	}
	// What an administrator may do without a line gets one when somebody else tries. (Denials that come at once share one.)
	for method, want := range map[api.Method]string{api.MethodCut: "read a whole shard", api.MethodInspect: "inspect a node"} {
		s.waitAudit(`"action":"`+want+`","result":"denied"`, func() {
			if _, err := ask(t, s.dial("reader"), method, 0, nil); !errors.Is(err, shard.ErrDenied) {
				t.Fatal(err)
			}
		})
	}
}

// waitAudit does something again until the audit log tells of it.
func (s *secured) waitAudit(want string, do func()) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		do()
		b, err := os.ReadFile(s.audit)
		if err != nil {
			s.t.Fatal(err)
		}
		if strings.Contains(string(b), want) {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("the audit log has no %s", want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// respMay says who may use each Redis command, at least, with arguments. A new command without an entry fails the test.
var respMay = map[string]string{
	"auth x y z": "nobody", "hello 9": "nobody", "reset": "nobody", "quit": "nobody",
	"ping": "reader", "echo a": "reader", "time": "reader", "select 0": "reader", "client id": "reader", "command count": "reader", "info": "reader",
	"config get save": "reader", "latency latest": "reader", "slowlog len": "reader", "role": "reader", "cluster info": "reader", "readonly": "reader",
	"readwrite": "reader", "wait 0 0": "reader", "multi": "reader", "exec": "reader", "discard": "reader", "unwatch": "reader", "watch k": "reader",
	"get k": "reader", "mget k": "reader", "strlen k": "reader", "getrange k 0 1": "reader", "substr k 0 1": "reader", "exists k": "reader",
	"touch k": "reader", "type k": "reader", "ttl k": "reader", "pttl k": "reader", "expiretime k": "reader", "pexpiretime k": "reader",
	"object encoding k": "reader", "memory usage k": "reader", "scan 0": "reader", "keys *": "reader", "dbsize": "reader", "kr.get k": "reader",
	"kr.range a b": "reader", "kr.shard k": "reader", "kr.shards": "reader",
	"set k v": "writer", "setnx k v": "writer", "setex k 9 v": "writer", "psetex k 9999 v": "writer", "getset k v": "writer", "getdel k": "writer",
	"getex k": "writer", "mset k v": "writer", "msetnx k v": "writer", "append k v": "writer", "setrange k 0 v": "writer", "incr n": "writer",
	"decr n": "writer", "incrby n 1": "writer", "decrby n 1": "writer", "incrbyfloat n 1": "writer", "del k": "writer", "unlink k": "writer",
	"expire k 9": "writer", "pexpire k 9": "writer", "expireat k 9": "writer", "pexpireat k 9": "writer", "persist k": "writer", "rename k l": "writer",
	"renamenx k l": "writer", "kr.cas k absent v": "writer",
	"client list": "admin", "client kill 1.2.3.4:5": "admin",
}

// respConn is a Redis client with inline commands, over TLS.
type respConn struct {
	t *testing.T
	c *tls.Conn
	r *bufio.Reader
}

func (s *secured) resp(who string) *respConn {
	s.t.Helper()
	cfg := s.certs.Client("").Client()
	cfg.ServerName = "127.0.0.1"
	c, err := tls.Dial("tcp", s.Node(0).RedisAddr(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	r := &respConn{s.t, c, bufio.NewReader(c)}
	if who != "nobody" {
		if got := r.do("auth " + who + " password-of-" + who); got != "+OK" {
			s.t.Fatal(who, got)
		}
	}
	return r
}

// do sends a command and one more that always answers, and returns the first line of the first reply.
func (r *respConn) do(command string) string {
	r.t.Helper()
	if _, err := io.WriteString(r.c, command+"\r\n"); err != nil {
		r.t.Fatal(command, err)
	}
	line, err := r.r.ReadString('\n')
	if err != nil {
		r.t.Fatal(command, err)
	}
	return strings.TrimSuffix(line, "\r\n")
}

// Every Redis command, as everybody.
func TestWhoMayRedis(t *testing.T) {
	s := startSecured(t, 1, 1)
	list := s.resp("admin")
	n, err := strconv.Atoi(strings.TrimPrefix(list.do("command count"), ":"))
	if err != nil || n < 50 {
		t.Fatal(n, err)
	}
	list.do("command list")
	known := map[string]bool{}
	for range n {
		if _, err := list.r.ReadString('\n'); err != nil { // the length
			t.Fatal(err)
		}
		name, err := list.r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		known[strings.TrimSpace(name)] = false
	}
	for command, lowest := range respMay {
		name, _, _ := strings.Cut(command, " ")
		if _, ok := known[name]; !ok {
			t.Errorf("%s is in the table, and not in the code", command)
		}
		known[name] = true
		for _, who := range ranks[:4] {
			got := s.resp(who).do(command) // a connection each: what comes before must not matter
			denied := strings.HasPrefix(got, "-NOAUTH") || strings.HasPrefix(got, "-NOPERM")
			if denied == mayFrom(lowest, who) || denied && (who == "nobody") != strings.HasPrefix(got, "-NOAUTH") {
				t.Errorf("%s as %s: %s", command, who, got)
			}
		}
	}
	for name, seen := range known {
		if !seen {
			t.Errorf("%s: say in respMay who may use it", name)
		}
	}

	for command, want := range map[string]string{"set app/k v": "+OK", "set k v": "-NOPERM", "mget app/k k": "-NOPERM", "rename app/k k": "-NOPERM",
		"scan 0": "-NOPERM", "scan 0 match app/*": "*2", "scan 0 match a*": "-NOPERM", "keys *": "-NOPERM", "keys app/*": "*", "dbsize": "-NOPERM",
		"kr.range app/ app0": "*2", `kr.range app/ ""`: "-NOPERM", "watch k": "-NOPERM", "watch app/k": "+OK", "incr app/n": ":", "msetnx app/a 1 b 1": "-NOPERM"} {
		app := s.resp("app")
		if got := app.do(command); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", command, got, want)
		}
	}
	tx := s.resp("app")
	tx.do("multi")
	if got := tx.do("set k v"); !strings.HasPrefix(got, "-NOPERM") {
		t.Error(got)
	}
	if got := tx.do("exec"); !strings.HasPrefix(got, "-EXECABORT") {
		t.Error(got)
	}
	tx = s.resp("app")
	if got := tx.do("reset"); got != "+RESET" {
		t.Error(got)
	}
	if got := tx.do("get app/k"); !strings.HasPrefix(got, "-NOAUTH") {
		t.Error("RESET does not log out:", got)
	}
	s.respAuth()
}

// TestRightsInTransactions: what may be done is asked when a command is queued and again at EXEC, and who somebody is does not change between.
func TestRightsInTransactions(t *testing.T) {
	s := startSecured(t, 1, 1)
	grant := func(g auth.Grant) {
		s.setUser(&api.UserRequest{Action: api.UserGrant, Name: "app", Grants: []auth.Grant{g}})
	}
	app := auth.Grant{Role: auth.RoleWrite, Prefix: []byte("app/")}
	none := auth.Grant{Role: auth.RoleNone, Prefix: app.Prefix}
	other := auth.Grant{Role: auth.RoleWrite, Prefix: []byte("other/")}
	for i, c := range []struct {
		commands []string
		grants   []auth.Grant // made before the last command
		want     string       // how the last command is answered
	}{
		{[]string{"multi", "set app/k 1", "exec"}, nil, "*1"},
		{[]string{"multi", "set app/k 2", "exec"}, []auth.Grant{none, other}, "-EXECABORT"},
		{[]string{"multi", "get app/k", "exec"}, []auth.Grant{{Role: auth.RoleRead, Prefix: app.Prefix}}, "*1"},
		{[]string{"multi", "set app/k 2", "exec"}, []auth.Grant{{Role: auth.RoleRead, Prefix: app.Prefix}}, "-EXECABORT"},
		{[]string{"watch app/k", "multi", "ping", "exec"}, []auth.Grant{none, other}, "-EXECABORT"},
		{[]string{"watch app/k", "auth reader password-of-reader", "multi", "get k", "exec"}, nil, "*1"},
		{[]string{"watch app/k", "multi", "exec"}, []auth.Grant{none}, "-NOPERM"},
		{[]string{"multi", "auth writer password-of-writer", "set k 2"}, nil, "-NOPERM"}, // the first is refused, so it is still app
		{[]string{"multi", "auth writer password-of-writer", "exec"}, nil, "-EXECABORT"},
		{[]string{"multi", "hello 2 auth writer password-of-writer", "exec"}, nil, "-EXECABORT"},
		{[]string{"multi", "set app/k 2", "watch app/k", "exec"}, nil, "*1"}, // as in Redis
		{[]string{"multi", "set app/k 2", "reset", "exec"}, nil, "-NOAUTH"},
		{[]string{"multi", "set app/k 2", "reset", "auth app password-of-app", "exec"}, nil, "-ERR EXEC without MULTI"},
		{[]string{"multi", "set app/k 2", "discard", "exec"}, nil, "-ERR EXEC without MULTI"},
		{[]string{"multi", "client kill skipme no", "exec"}, nil, "-EXECABORT"},
	} {
		grant(app)
		r := s.resp("app")
		last := len(c.commands) - 1
		for _, command := range c.commands[:last] {
			r.do(command)
		}
		for _, g := range c.grants {
			grant(g)
		}
		if got := r.do(c.commands[last]); !strings.HasPrefix(got, c.want) {
			t.Errorf("case %d, %q: %s, want %s", i, c.commands, got, c.want)
		}
		grant(auth.Grant{Role: auth.RoleNone, Prefix: other.Prefix})
	}
	if got := s.resp("nobody").do("exec"); !strings.HasPrefix(got, "-NOAUTH") {
		t.Error(got)
	}
}

// respAuth tries the forms of AUTH and HELLO (FAULTS A7), and what strangers send (A1).
func (s *secured) respAuth() {
	for _, c := range []struct{ command, want string }{
		{"hello", "-NOAUTH"}, {"hello 3", "-NOAUTH"}, {"hello 3 auth app wrong-password", "-WRONGPASS"}, {"hello 3 auth app", "-ERR"},
		{"hello 3 auth reader password-of-reader", "%7"}, {"hello 2 auth writer password-of-writer setname x", "*14"}, {"hello 4", "-NOPROTO"},
		{"auth password-of-admin", "-WRONGPASS"}, {"auth admin wrong-password", "-WRONGPASS"}, {"auth", "-ERR"}, {"auth a b c", "-ERR"},
		{"*11", "-ERR Protocol error: unauthenticated multibulk length"}, {"*1\r\n$16385", "-ERR Protocol error: unauthenticated bulk length"},
	} {
		r := s.resp("nobody")
		if got := r.do(c.command); !strings.HasPrefix(got, c.want) {
			s.t.Errorf("%s: %s, want %s", c.command, got, c.want)
		}
	}
	for _, line := range []string{"POST / HTTP/1.1", "Host: x"} {
		r := s.resp("nobody")
		_, _ = io.WriteString(r.c, line+"\r\n")
		if got, err := r.r.ReadString('\n'); err == nil {
			s.t.Errorf("%s: answered %q", line, got)
		}
	}
	cfg := s.certs.Client("writer").Client()
	cfg.ServerName = "127.0.0.1"
	c, err := tls.Dial("tcp", s.Node(0).RedisAddr(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if got := (&respConn{s.t, c, bufio.NewReader(c)}).do("set by-certificate 1"); got != "+OK" {
		s.t.Error("a certificate does for a Redis client:", got)
	}
}

// httpMay says who may use each path, at least. A new path without an entry fails the test.
var httpMay = map[string]string{
	"GET /livez": "nobody", "GET /healthz": "nobody", "GET /readyz": "nobody", "GET /login": "nobody", "POST /login": "nobody", "POST /logout": "nobody",
	"GET /session": "reader", "GET /metrics": "reader", "GET /api/heat": "reader", "GET /api/history": "reader",
	"GET /{$}": "reader", "GET /console/": "reader", "GET /api/status": "reader", "GET /api/nodes": "reader", "GET /api/shards": "reader",
	"GET /api/shard/{id}": "reader", "GET /api/ops": "reader", "GET /api/shard/{id}/events": "admin", "POST /api/ops": "admin",
	"POST /api/ops/{id}/cancel": "admin", "POST /api/nodes/{id}/undrain": "admin",
	"GET /debug/log": "admin", "PUT /debug/log": "admin", "/debug/pprof/": "admin", "/debug/pprof/cmdline": "admin", "/debug/pprof/profile": "admin",
	"/debug/pprof/symbol": "admin", "/debug/pprof/trace": "admin",
}

// web is an HTTP client of the first node that follows no redirects.
func (s *secured) web() *http.Client {
	cfg := s.certs.Client("").Client()
	tr := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}
	return &http.Client{Transport: tr, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (s *secured) request(method, path, who string, change ...func(*http.Request)) (int, string, *http.Response) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, "https://"+s.Node(0).HTTPAddr()+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if who != "nobody" && who != "" {
		req.SetBasicAuth(who, "password-of-"+who)
	}
	for _, f := range change {
		f(req)
	}
	res, err := s.web().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b), res
}

// Every HTTP path, as everybody.
func TestWhoMayHTTP(t *testing.T) {
	s := startSecured(t, 1, 1)
	routes := s.Node(0).Routes()
	if len(routes) != len(httpMay) {
		t.Errorf("%d paths in the code, %d in the table", len(routes), len(httpMay))
	}
	for _, r := range routes {
		lowest, ok := httpMay[r.Pattern]
		if !ok {
			t.Errorf("%s: say in httpMay who may use it", r.Pattern)
			continue
		}
		method, path, ok := strings.Cut(r.Pattern, " ")
		if !ok {
			method, path = "GET", r.Pattern
		}
		if strings.HasSuffix(path, "/profile") || strings.HasSuffix(path, "/trace") {
			path += "?seconds=1"
		}
		for _, who := range ranks[:4] {
			if who == "admin" && strings.Contains(path, "seconds") {
				continue // takes its time, and lowest says enough of the others
			}
			code, body, _ := s.request(method, path, who)
			denied := code == http.StatusUnauthorized || code == http.StatusForbidden && path != "/login"
			if denied == mayFrom(lowest, who) || denied && (who == "nobody") != (code == http.StatusUnauthorized) {
				t.Errorf("%s as %s: %d %s", r.Pattern, who, code, body)
			}
		}
	}
	for _, path := range []string{"/", "/nothing", "/livez/x", "/debug", "/api/"} {
		if code, _, _ := s.request("GET", path, "nobody"); code != http.StatusUnauthorized {
			t.Errorf("%s as nobody: %d", path, code)
		}
	}
	if code, body, _ := s.request("GET", "/readyz?verbose", "nobody"); strings.TrimSpace(body) != "ready" {
		t.Errorf("nobody learns more than a word: %d %s", code, body)
	}
	if _, body, _ := s.request("GET", "/readyz?verbose", "reader"); !strings.Contains(body, "[+] meta ok") {
		t.Errorf("a reader learns nothing: %s", body)
	}
	if code, _, _ := s.request("GET", "/metrics", "", func(r *http.Request) { r.SetBasicAuth("writer", "wrong-password") }); code != http.StatusUnauthorized {
		t.Errorf("a wrong password: %d", code)
	}
	if code, _, res := s.request("GET", "/metrics", "writer"); code != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("too early after a wrong password: %d", code)
	}
	s.sessions()
}

// sessions logs in and out as a browser does.
func (s *secured) sessions() {
	login := func(user, password string, change ...func(*http.Request)) (int, *http.Response) {
		form := url.Values{"user": {user}, "password": {password}}.Encode()
		code, _, res := s.request("POST", "/login", "", append(change, func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(form)), int64(len(form))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		})...)
		return code, res
	}
	code, res := login("reader", "password-of-reader")
	if code != http.StatusSeeOther || len(res.Cookies()) != 1 {
		s.t.Fatal(code, res.Cookies())
	}
	c := res.Cookies()[0]
	if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || !strings.HasPrefix(c.Name, "__Host-") {
		s.t.Errorf("%+v", c)
	}
	with := func(r *http.Request) { r.AddCookie(c) }
	code, body, _ := s.request("GET", "/session", "", with)
	var who struct {
		User  string
		Admin bool
	}
	if err := json.Unmarshal([]byte(body), &who); code != 200 || err != nil || who.User != "reader" || who.Admin {
		s.t.Errorf("%d %s", code, body)
	}
	if code, _, _ := s.request("GET", "/debug/pprof/", "", with); code != http.StatusForbidden {
		s.t.Errorf("a reader's session sees profiles: %d", code)
	}
	if code, _, _ := s.request("POST", "/logout", "", with, func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }); code != http.StatusForbidden {
		s.t.Errorf("another site logs people out: %d", code)
	}
	if code, _ := login("reader", "password-of-reader", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }); code != http.StatusForbidden {
		s.t.Errorf("another site logs people in: %d", code)
	}
	if code, _, _ := s.request("POST", "/logout", "", with); code != http.StatusSeeOther {
		s.t.Errorf("logout: %d", code)
	}
	if code, _, _ := s.request("GET", "/session", "", with); code != http.StatusUnauthorized {
		s.t.Errorf("the session goes on after logout: %d", code)
	}
	if code, res := login("reader", "wrong-password"); code != http.StatusForbidden || len(res.Cookies()) != 0 {
		s.t.Errorf("a wrong password logs in: %d", code)
	}
	if code, res := login("reader", strings.Repeat("x", 100_000)); code != http.StatusBadRequest || len(res.Cookies()) != 0 {
		s.t.Errorf("a huge form: %d", code)
	}
	code, _, res = s.request("GET", "/session", "", func(r *http.Request) { r.Header.Set("Accept", "text/html") })
	if code != http.StatusSeeOther || res.Header.Get("Location") != "/login" {
		s.t.Errorf("a browser is not sent to the login page: %d", code)
	}
}

// Without certificates everybody may do everything, and who gives a password is held to that user's rights.
func TestSecurityOff(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 1, 1)
	anyone, err := transport.DialClient(t.Context(), c.Addrs()[0], transport.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer anyone.Close()
	q := api.UserRequest{Action: api.UserAdd, Name: "ann", Password: []byte("password1"), Grants: []auth.Grant{{Role: auth.RoleRead}}}
	if _, err := ask(t, anyone, api.MethodUserSet, 0, q.Append(nil)); err != nil {
		t.Fatal(err)
	}
	ann, err := transport.DialClient(t.Context(), c.Addrs()[0], transport.ClientConfig{User: "ann", Password: []byte("password1")})
	if err != nil {
		t.Fatal(err)
	}
	defer ann.Close()
	if _, err := ask(t, ann, api.MethodRouteWrite, 0, bodyOf(api.MethodRouteWrite)); !errors.Is(err, shard.ErrDenied) {
		t.Error(err)
	}
	if _, err := ask(t, anyone, api.MethodRouteWrite, 0, bodyOf(api.MethodRouteWrite)); err != nil {
		t.Error(err)
	}
}
