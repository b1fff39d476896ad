package logs

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// clocked is a log with a clock of the test.
func clocked(out *bytes.Buffer) (*Log, *time.Time) {
	now := time.Unix(1000, 0)
	l := New(out, false, slog.LevelInfo)
	l.limit.now = func() time.Time { return now }
	return l, &now
}

func TestLimit(t *testing.T) {
	var out bytes.Buffer
	l, now := clocked(&out)
	log := l.Logger().With("on", 1)
	for i := range Burst + 7 {
		log.Warn("again", "i", i)
	}
	log.Info("another")
	if n := strings.Count(out.String(), "msg=again"); n != Burst || !strings.Contains(out.String(), "msg=another on=1") {
		t.Fatalf("%d lines:\n%s", n, out.String())
	}
	out.Reset()
	*now = now.Add(Window)
	log.Warn("again", "i", -1)
	if got := out.String(); !strings.Contains(got, `msg="lines left out" message=again suppressed=7`) || !strings.Contains(got, "msg=again on=1 i=-1") {
		t.Errorf("after the window:\n%s", got)
	}
}

// TestBounds: neither many messages nor many nor long lines take memory without bound.
func TestBounds(t *testing.T) {
	var out bytes.Buffer
	l, _ := clocked(&out)
	for i := range messagesMax * 3 {
		l.Logger().Info(fmt.Sprintf("message %d", i))
	}
	if n := len(l.limit.messages); n > messagesMax+1 {
		t.Errorf("%d messages are told apart", n)
	}
	long := strings.Repeat("x", 3*lineBytesMax)
	l.SetLevel(slog.LevelDebug)
	for i := range 200 {
		l.Logger().Debug("long", "i", i, "x", long)
	}
	got := l.Recent()
	if len(got) > RecentBytesMax || len(got) < RecentBytesMax/2 {
		t.Errorf("%d bytes are kept", len(got))
	}
	if !bytes.Contains(got, []byte("i=199")) || bytes.Contains(got, []byte("i=1 ")) {
		t.Error("not the last lines are kept")
	}
	if n := strings.Count(out.String(), long); n != 200 {
		t.Errorf("%d of 200 long lines were written whole", n)
	}
}

func TestLevel(t *testing.T) {
	var out bytes.Buffer
	l, _ := clocked(&out)
	log := l.Logger()
	log.Debug("one")
	l.SetLevel(slog.LevelDebug)
	log.Debug("two")
	l.SetLevel(slog.LevelError)
	log.Warn("three")
	if got := out.String(); strings.Contains(got, "one") || !strings.Contains(got, "two") || strings.Contains(got, "three") {
		t.Error(got)
	}
}

func TestConcurrent(t *testing.T) {
	var mu sync.Mutex
	lines := 0
	l := New(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		lines += bytes.Count(b, []byte("\n"))
		return len(b), nil
	}), true, slog.LevelInfo)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				l.Logger().Info(strconv.Itoa(g), "i", i)
				_ = l.Recent()
			}
		})
	}
	wg.Wait()
	if lines < 8*Burst {
		t.Errorf("%d lines", lines)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// banned are keys that others have a name for.
var banned = map[string]string{
	"error": "err", "shard_id": "shard", "shardID": "shard", "node_id": "node", "nodeID": "node", "id": "shard, node, replica or op",
	"idx": "index", "elapsed": "took", "duration": "took", "dur": "took", "peer": "node",
}

// TestKeys: the same thing has the same key in every log line of the project. Keys are lower case with underscores.
func TestKeys(t *testing.T) {
	root := filepath.Join("..", "..")
	calls := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			args := logArgs(call)
			if args != nil {
				calls++
			}
			for i := 0; i < len(args); i += 2 {
				lit, ok := args[i].(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					break // attributes, or a list
				}
				key, _ := strconv.Unquote(lit.Value)
				if use := banned[key]; use != "" || key != strings.ToLower(key) || strings.ContainsAny(key, " -.") {
					t.Errorf("%s: key %q in a log line: %s", fset.Position(lit.Pos()), key, use)
				}
			}
			return true
		})
		return nil
	})
	if err != nil || calls < 30 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// logArgs returns the attributes of a call of a logger, nil if it is none.
func logArgs(call *ast.CallExpr) []ast.Expr {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	on := ""
	switch x := sel.X.(type) {
	case *ast.Ident:
		on = x.Name
	case *ast.SelectorExpr:
		on = x.Sel.Name
	}
	if low := strings.ToLower(on); low != "log" && low != "logger" && low != "slog" && low != "audit" {
		return nil
	}
	skip := map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "Log": 3}[sel.Sel.Name]
	if skip == 0 || len(call.Args) < skip {
		return nil
	}
	return call.Args[skip:]
}
