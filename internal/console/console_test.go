package console

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, name string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("GET", name, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	if name == "/" {
		Page(w, r)
	} else {
		File(w, r)
	}
	return w
}

// TestFilesAreComplete: whatever a file names is embedded, is served with its type and the policy, and nothing comes from elsewhere.
func TestFilesAreComplete(t *testing.T) {
	refs := regexp.MustCompile(`(?:href|src)="(/console/[^"]+)"|from '(\./[^']+)'`)
	elsewhere := regexp.MustCompile(`(?:href|src)="(?:https?:)?//|from 'https?:|url\(['"]?(?:https?:)?//|@import`)
	named := map[string]bool{"index.html": true}
	for name, f := range files {
		if !strings.HasPrefix(name, "vendor/") && elsewhere.Match(f.body) {
			t.Errorf("%s takes something from elsewhere", name)
		}
		for _, m := range refs.FindAllStringSubmatch(string(f.body), -1) {
			to := strings.TrimPrefix(m[1], "/console/")
			if m[2] != "" {
				to = path.Join(path.Dir(name), m[2])
			}
			named[to] = true
			if _, ok := files[to]; !ok {
				t.Errorf("%s names %s, which is not embedded", name, to)
			}
		}
	}
	for name := range files {
		if !named[name] && !strings.HasSuffix(name, ".txt") {
			t.Errorf("%s is embedded, and nothing names it", name)
		}
		w := get(t, "/console/"+name)
		h := w.Header()
		if w.Code != http.StatusOK || h.Get("Content-Type") == "" || h.Get("Content-Security-Policy") != policy {
			t.Errorf("%s: %d %v", name, w.Code, h)
		}
		if w := get(t, "/console/"+name, "If-None-Match", h.Get("ETag")); w.Code != http.StatusNotModified || w.Body.Len() > 0 {
			t.Errorf("%s again: %d", name, w.Code)
		}
	}
	if len(files) < 10 {
		t.Fatalf("only %d files are embedded", len(files))
	}
	for _, name := range []string{"/console/", "/console/nothing.js", "/console/../console.go", "/console/vendor"} {
		if w := get(t, name); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	if w := get(t, "/"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "<main") {
		t.Errorf("the page: %d", w.Code)
	}
}

// TestNoMarkup: no module makes markup of text, or runs text, and the page has neither script nor style in it.
func TestNoMarkup(t *testing.T) {
	bad := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\(|new Function|srcdoc|\.style\s*=[^=]|javascript:`)
	for name, f := range files {
		if path.Ext(name) != ".js" || strings.HasPrefix(name, "vendor/") {
			continue
		}
		if m := bad.Find(f.body); m != nil {
			t.Errorf("%s uses %s", name, m)
		}
	}
	page := string(files["index.html"].body)
	if m := regexp.MustCompile(`<script[^>]*>[^<]|<style|style=|\son[a-z]+=`).FindString(page); m != "" {
		t.Errorf("the page has %q", m)
	}
	for _, must := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
		if !strings.Contains(policy, must) {
			t.Errorf("the policy lacks %s", must)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Error("the policy allows what is unsafe")
	}
}

// TestSize: the console stays small.
func TestSize(t *testing.T) {
	size := 0
	if err := fs.WalkDir(embedded, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			b, rerr := embedded.ReadFile(name)
			size += len(b)
			err = rerr
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", size)
	if size > 160<<10 {
		t.Errorf("%d bytes are embedded", size)
	}
}
