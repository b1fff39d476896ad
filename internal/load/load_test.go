package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/client/clienttest"
	"github.com/kiloraft/kiloraft/internal/sysfail"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func items(t *testing.T, kv client.KV) map[string]string {
	t.Helper()
	out := map[string]string{}
	for it, err := range kv.Scan(t.Context(), client.Range{}) {
		if err != nil {
			t.Fatal(err)
		}
		out[string(it.Key)] = string(it.Value)
	}
	return out
}

func put(t *testing.T, kv client.KV, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if _, err := kv.Put(t.Context(), []byte(k), []byte("value of "+k)); err != nil {
			t.Fatal(err)
		}
	}
}

func importText(t *testing.T, kv client.KV, f Format, text string) Report {
	t.Helper()
	r, err := Import(t.Context(), kv, "-", strings.NewReader(text), ImportOptions{Format: f})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLinesRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(rt, "key")
		value := rapid.SliceOfN(rapid.SampledFrom([]byte{0, '\t', '\n', '\\', 't', 'n', '"', 'u', 0xff, 0xc3, 0xa4, '<'}), 0, 40).Draw(rt, "value")
		for _, f := range []struct {
			name   string
			encode func(dst, k, v []byte) []byte
			parse  func([]byte) ([]byte, []byte, error)
		}{{"tsv", appendTSV, parseTSV}, {"jsonl", appendJSONL, parseJSONL}} {
			line := f.encode([]byte("x"), key, value)[1:]
			if bytes.Count(line, []byte{'\n'}) != 1 {
				rt.Fatalf("%s: %q is not one line", f.name, line)
			}
			k, v, err := f.parse(bytes.TrimSuffix(line, []byte{'\n'}))
			if err != nil || !bytes.Equal(k, key) || !bytes.Equal(v, value) {
				rt.Fatalf("%s: %q came back as %q %q, %v", f.name, line, k, v, err)
			}
		}
	})
}

func TestNotation(t *testing.T) {
	if got := string(appendTSV(nil, []byte("a\tb"), []byte("c\\\nd\r"))); got != "a\\tb\tc\\\\\\nd\r\n" {
		t.Errorf("tsv %q", got)
	}
	if got := string(appendJSONL(nil, []byte("k<"), []byte{0xff})); got != `{"key":"k<","value_b64":"/w=="}`+"\n" {
		t.Errorf("jsonl %q", got)
	}
}

func TestRejectedLines(t *testing.T) {
	for _, c := range []struct {
		format Format
		line   string
		why    string
	}{
		{TSV, "no tab", "no tab"}, {TSV, "a\tb\tc", "more than one tab"}, {TSV, `a\q` + "\tb", `unknown escape \q`}, {TSV, "a\tb\\", "backslash at the end"},
		{TSV, strings.Repeat("k", 5000) + "\tv", "4096"},
		{JSONL, `{"key":"a"}`, "neither value"}, {JSONL, `{"key":"a","key_b64":"YQ==","value":""}`, "both key"},
		{JSONL, `{"key":"a","value":"b","ttl":3}`, "ttl"}, {JSONL, `{"key":"a","value":"b"} x`, "more than one"},
		{JSONL, `{"key":"a","value":5}`, "not a JSON record"}, {JSONL, `[1]`, "not a JSON"}, {JSONL, `{"key":"a","value_b64":"%"}`, "value_b64"},
		{JSONL, "{\"key\":\"\xff\",\"value\":\"\"}", "not UTF-8"}, {JSONL, `{"key":"\ud800","value":""}`, "surrogate"},
	} {
		kv := clienttest.New()
		good := "good\tv"
		if c.format == JSONL {
			good = `{"key":"good","value":"v"}`
		}
		r := importText(t, kv, c.format, good+"\n"+c.line+"\n\n"+strings.Replace(good, "good", "last", 1))
		if r.Keys != 2 || r.RejectedTotal != 1 || len(r.Rejected) != 1 {
			t.Errorf("%q: %+v", c.line, r)
			continue
		}
		if got := r.Rejected[0]; got.Where != "line 2" || !strings.Contains(got.Error, c.why) {
			t.Errorf("%q: rejected as %+v, want %q", c.line, got, c.why)
		}
		if got := items(t, kv); len(got) != 2 || got["last"] != "v" {
			t.Errorf("%q: store %q", c.line, got)
		}
	}
	if loneSurrogate([]byte(`\\ud800`)) || loneSurrogate([]byte(`\ud83d\ude00`)) || !loneSurrogate([]byte(`x\ude00`)) {
		t.Error("loneSurrogate is wrong")
	}
}

func TestLineTooLongIsSkippedWhole(t *testing.T) {
	long := strings.Repeat("x", lineBytesMax+10)
	kv := clienttest.New()
	r := importText(t, kv, TSV, "a\t1\nb\t"+long+"\nc\t3")
	if r.Keys != 2 || r.RejectedTotal != 1 || r.Rejected[0].Where != "line 2" {
		t.Errorf("%+v", r)
	}
}

// TestSameKeyKeepsOrder writes one key many times among others: the last line wins, though hundreds are in flight.
func TestSameKeyKeepsOrder(t *testing.T) {
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&b, "same\t%d\nother%d\tx\n", i, i%100)
	}
	kv := clienttest.New()
	importText(t, kv, TSV, b.String())
	if got := items(t, kv)["same"]; got != "4999" {
		t.Errorf("the last line was %s", got)
	}
}

func TestImportStopsWhenUnavailable(t *testing.T) {
	kv := clienttest.New()
	var n atomic.Int64
	kv.Fail = func(string, []byte) error {
		if n.Add(1) > 500 {
			return client.ErrUnavailable
		}
		return nil
	}
	var b strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&b, "k%d\tv\n", i)
	}
	r, err := Import(t.Context(), kv, "-", strings.NewReader(b.String()), ImportOptions{Format: TSV})
	if !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	if r.Keys != 500 {
		t.Errorf("%d keys reported, 500 were acknowledged", r.Keys)
	}
	if n.Load() > 2000 {
		t.Errorf("%d requests after the failure", n.Load())
	}
}

func TestImportCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	kv := clienttest.New()
	kv.Fail = func(string, []byte) error { cancel(); return nil }
	if _, err := Import(ctx, kv, "-", strings.NewReader(strings.Repeat("a\tb\n", 100_000)), ImportOptions{Format: TSV}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestDirRoundTrip sends a tree through the store and compares every byte.
func TestDirRoundTrip(t *testing.T) {
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "out")
	want := map[string]string{"a.go": "package a", "sub/b": "", "sub/deep/ü": "\x00\xff", "sub/deep/c d": "x"}
	for name, text := range want {
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	kv := clienttest.New()
	r, err := Import(t.Context(), kv, src, nil, ImportOptions{Format: Dir, Prefix: []byte("p/")})
	if err != nil || r.Keys != 4 || r.RejectedTotal != 1 || r.Rejected[0].Where != "link" {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err = Export(t.Context(), kv, dst, nil, ExportOptions{Format: Dir, Prefix: []byte("p/")}); err != nil || r.Keys != 4 {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, text := range want {
		if b, err := os.ReadFile(filepath.Join(dst, "p", name)); err != nil || string(b) != text {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// TestDirExportStaysInside feeds keys and links that would lead out of the directory.
func TestDirExportStaysInside(t *testing.T) {
	base := t.TempDir()
	outside, dst := filepath.Join(base, "outside"), filepath.Join(base, "out")
	for _, d := range []string{outside, dst} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"escape": outside, "file": filepath.Join(outside, "secret"), "up": ".."} {
		if err := os.Symlink(target, filepath.Join(dst, link)); err != nil {
			t.Fatal(err)
		}
	}
	bad := []string{"", "/abs", "../x", "a/../../x", "a//b", "a/", "./a", "a/.", "..", ".", "nul\x00", strings.Repeat("n", 256), "escape/secret", "up/outside/secret", "f/below"}
	good := []string{"f", "file", "ok/one", strings.Repeat("n", 255), "..x", "ok/.hidden", "back\\slash"}
	kv := clienttest.New()
	put(t, kv, append(bad, good...)...)
	r, err := Export(t.Context(), kv, dst, nil, ExportOptions{Format: Dir})
	if err != nil {
		t.Fatal(err)
	}
	if int(r.RejectedTotal) != len(bad) || int(r.Keys) != len(good) {
		t.Errorf("%+v", r)
	}
	for _, k := range good {
		if b, err := os.ReadFile(filepath.Join(dst, k)); err != nil || string(b) != "value of "+k {
			t.Errorf("%q: %q, %v", k, b, err)
		}
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("outside holds %v, %v", entries, err)
	}
	if b, _ := os.ReadFile(filepath.Join(outside, "secret")); string(b) != "untouched" {
		t.Errorf("a file outside was overwritten: %q", b)
	}
	if entries, _ := os.ReadDir(base); len(entries) != 2 {
		t.Errorf("beside the directory: %v", entries)
	}
}

func TestExportIsSortedAndImportsBack(t *testing.T) {
	kv := clienttest.New()
	put(t, kv, "b", "a", "\x00", "a/b", "\xff\xfe", "tab\t", "back\\n")
	for _, f := range []Format{TSV, JSONL} {
		path := filepath.Join(t.TempDir(), "out")
		if _, err := Export(t.Context(), kv, path, nil, ExportOptions{Format: f}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path + ".partial"); !os.IsNotExist(err) {
			t.Errorf("a partial file is left: %v", err)
		}
		other := clienttest.New()
		r, err := Import(t.Context(), other, path, nil, ImportOptions{Format: f})
		if err != nil || r.RejectedTotal != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		if a, b := fmt.Sprint(items(t, kv)), fmt.Sprint(items(t, other)); a != b {
			t.Errorf("%s: %q became %q", f, a, b)
		}
		var one, two bytes.Buffer
		for kv, w := range map[client.KV]*bytes.Buffer{kv: &one, other: &two} {
			if _, err := Export(t.Context(), kv, "-", w, ExportOptions{Format: f}); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(one.Bytes(), two.Bytes()) || one.Len() == 0 {
			t.Errorf("%s: exports differ", f)
		}
	}
}

func TestFailedExportLeavesNothing(t *testing.T) {
	kv := clienttest.New()
	kv.Fail = func(op string, _ []byte) error {
		if op == "scan" {
			return client.ErrUnavailable
		}
		return nil
	}
	dir := t.TempDir()
	if _, err := Export(t.Context(), kv, filepath.Join(dir, "x"), nil, ExportOptions{Format: TSV}); !errors.Is(err, client.ErrUnavailable) {
		t.Error(err)
	}
	if e, _ := os.ReadDir(dir); len(e) != 0 {
		t.Errorf("left: %v", e)
	}
}

func TestPrefixEnd(t *testing.T) {
	for in, want := range map[string]string{"": "", "a": "b", "a\xff": "b", "\xff\xff": "", "a\x00": "a\x01"} {
		if got := PrefixEnd([]byte(in)); string(got) != want {
			t.Errorf("PrefixEnd(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestGuess(t *testing.T) {
	for in, want := range map[string]Format{t.TempDir(): Dir, "x.jsonl": JSONL, "x.tsv": TSV, "-": TSV, "new/": Dir, "x": TSV} {
		if got := Guess(in); got != want {
			t.Errorf("Guess(%q) = %s, want %s", in, got, want)
		}
	}
}

// What is not durable does not take the place of what was there (FAULTS D20).
func TestUnsyncedFileReplacesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	kv := clienttest.New()
	var err error
	sysfail.Test(t, syscall.EIO, func() {
		err = func() error { _, err := Export(t.Context(), kv, path, nil, ExportOptions{Format: TSV}); return err }()
	}, sysfail.Fsync)
	b, rerr := os.ReadFile(path)
	if !errors.Is(err, syscall.EIO) || rerr != nil || string(b) != "old" {
		t.Errorf("on a disk that fails: %v; there is %q, %v", err, b, rerr)
	}
}
