package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	docLink   = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	docMetric = regexp.MustCompile(`\bkiloraft_[a-z0-9]+_[a-z0-9_]*[a-z0-9]\b`)
)

// What the documents point to exists: other files, and metrics.
func TestDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	metrics, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range docLink.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", filepath.Base(page), m[1], err)
			}
		}
		for _, name := range docMetric.FindAllString(string(text), -1) {
			base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
			if !strings.Contains(string(metrics), "`"+name+"`") && !strings.Contains(string(metrics), "`"+base+"`") {
				t.Errorf("%s: no metric is called %s", filepath.Base(page), name)
			}
		}
	}
}
