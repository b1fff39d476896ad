package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/kiloraft/kiloraft"

// mayImport is the package table of the design: for each top-level directory, the other top-level directories that its
// non-test code may import. "internal" may be imported by all but the engine, and imports what is listed for it.
var mayImport = map[string][]string{
	"engine":     {},
	"store":      {"engine", "internal"},
	"transport":  {"engine", "internal"},
	"shard":      {"engine", "store", "internal"},
	"scheduler":  {"shard", "store", "transport", "engine", "internal"},
	"router":     {"shard", "transport", "engine", "internal"},
	"placement":  {"router", "shard", "engine", "internal"},
	"node":       {"placement", "router", "scheduler", "shard", "store", "transport", "engine", "internal"},
	"cmd":        {"node", "placement", "router", "scheduler", "shard", "store", "transport", "engine", "internal"},
	"internal":   nil, // see internalMayImport
	"docs":       {},
	"benchpeers": {},
}

// highInternal are the internal packages that serve cmd alone and may import what cmd may.
// All others import the standard library and modules only.
var highInternal = []string{"internal/backup", "internal/cli", "internal/client", "internal/client/clienttest", "internal/config", "internal/demo", "internal/bench", "internal/bench/guard", "internal/load", "internal/e2e", "internal/output", "internal/recovery", "internal/sim"}

// frontInternal are the internal packages that are front doors of a node, each with what it may import: they turn a protocol into
// calls of the router, and only node, and what serves cmd, may import them.
var frontInternal = map[string][]string{
	"internal/resp": {"router", "shard", "engine", "internal"},
}

// enginePure lists what the engine may take from the standard library: nothing with I/O, time or concurrency in it.
var enginePure = []string{"cmp", "errors", "fmt", "iter", "math", "math/bits", "slices", "sort", "strconv", "strings"}

type pkg struct {
	dir     string
	files   map[string]*ast.File // non-test
	imports map[string][]string  // import path -> files
}

func load(t *testing.T) map[string]*pkg {
	t.Helper()
	root := filepath.Join("..", "..")
	pkgs := map[string]*pkg{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			if path != root {
				if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
					return filepath.SkipDir
				}
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		p := pkgs[rel]
		if p == nil {
			p = &pkg{dir: rel, files: map[string]*ast.File{}, imports: map[string][]string{}}
			pkgs[rel] = p
		}
		p.files[name] = f
		for _, im := range f.Imports {
			s, err := strconv.Unquote(im.Path.Value)
			if err != nil {
				return err
			}
			p.imports[s] = append(p.imports[s], name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 3 {
		t.Fatalf("found only %d packages: is the test looking in the right place?", len(pkgs))
	}
	return pkgs
}

func top(dir string) string { return strings.SplitN(dir, "/", 2)[0] }

func TestArrowsPointDown(t *testing.T) {
	for dir, p := range load(t) {
		from := top(dir)
		allowed, known := mayImport[from]
		if !known {
			t.Errorf("%s: top-level directory %q is not in the package table", dir, from)
			continue
		}
		if from == "internal" {
			allowed = []string{"internal"}
			if slices.ContainsFunc(highInternal, func(h string) bool { return dir == h || strings.HasPrefix(dir, h+"/") }) {
				allowed = append(slices.Clone(mayImport["cmd"]), "internal")
			}
		}
		if front, ok := frontInternal[dir]; ok {
			allowed = front
		}
		for path, files := range p.imports {
			rel, ours := strings.CutPrefix(path, module+"/")
			if !ours {
				continue
			}
			if to := top(rel); to != from && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s (in %v): %s may import only %v", dir, rel, files, from, allowed)
			}
			if _, front := frontInternal[rel]; front && from != "node" && from != "cmd" && !slices.Contains(highInternal, dir) {
				t.Errorf("%s imports %s (in %v), which is a front door of node", dir, rel, files)
			}
			if from != "cmd" && top(rel) == "internal" && slices.Contains(highInternal, rel) && !slices.Contains(highInternal, dir) {
				t.Errorf("%s imports %s (in %v), which serves cmd alone", dir, rel, files)
			}
		}
	}
}

func TestEngineIsPure(t *testing.T) {
	p := load(t)["engine"]
	if p == nil {
		t.Fatal("no package engine")
	}
	for path, files := range p.imports {
		if strings.Contains(path, ".") {
			t.Errorf("engine imports %s (in %v): the standard library only", path, files)
		} else if !slices.Contains(enginePure, path) {
			t.Errorf("engine imports %s (in %v): only %v", path, files, enginePure)
		}
	}
	// No goroutine, channel or select either.
	root := filepath.Join("..", "..", "engine")
	for name := range p.files {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n.(type) {
			case *ast.GoStmt, *ast.ChanType, *ast.SelectStmt, *ast.SendStmt:
				t.Errorf("engine/%s uses a goroutine or channel", name)
			}
			return true
		})
	}
}

func TestEveryPackageHasADoc(t *testing.T) {
	for dir, p := range load(t) {
		f := p.files["doc.go"]
		switch {
		case f == nil && len(p.files) > 1:
			t.Errorf("%s has no doc.go", dir)
		case f == nil: // a package of one file may say it there
			for name, f := range p.files {
				if f.Doc == nil {
					t.Errorf("%s/%s has no package comment", dir, name)
				}
			}
		case f.Doc == nil:
			t.Errorf("%s/doc.go has no package comment", dir)
		}
	}
}

// The repository speaks of the product alone: no path of a machine, no mark of an unfinished thing.
func TestNoMachinePaths(t *testing.T) {
	root := filepath.Join("..", "..")
	bad := []string{"/" + "work/", "/" + "tmp/kr", "not " + "implemented yet"}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		switch filepath.Ext(path) {
		case ".go", ".md", ".txt", ".yaml", ".yml", "":
		default:
			return nil
		}
		if d.Name() == ".git" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, s := range bad {
			if strings.Contains(string(b), s) {
				t.Errorf("%s contains %q", path, s)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
