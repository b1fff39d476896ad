package node_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/kiloraft/kiloraft/node/nodetest"
)

// TestOtherSites: without certificates a browser of this machine gets nothing from a node, and changes nothing, for a site whose name was made to
// resolve to it.
func TestOtherSites(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 1, 1)
	addr := c.Node(0).HTTPAddr()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, host string, headers ...string) (int, string) {
		r, err := http.NewRequest(method, "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	evil := "evil.example:" + port
	for _, q := range []struct{ method, path string }{
		{"GET", "/"}, {"GET", "/api/shards"}, {"GET", "/metrics"}, {"GET", "/debug/log"}, {"GET", "/debug/pprof/"}, {"PUT", "/debug/log?level=debug"},
	} {
		if code, body := ask(q.method, q.path, evil, "Origin", "http://"+evil, "Sec-Fetch-Site", "same-origin"); code != http.StatusForbidden || !strings.Contains(body, "evil.example") {
			t.Errorf("%s %s for %s: %d %.200q", q.method, q.path, evil, code, body)
		}
	}
	for _, host := range []string{"localhost.evil.example", "127.0.0.1.evil.example", "evil.localhost.example:1", "[evil]:1", strings.Repeat("x", 5000)} {
		if code, _ := ask("GET", "/api/shards", host); code != http.StatusForbidden {
			t.Errorf("host %.100q: %d", host, code)
		}
	}
	for _, host := range []string{addr, "127.0.0.1", "localhost", "LOCALHOST.:" + port, "n1.localhost:" + port, fmt.Sprintf("[::1]:%s", port), "[::1]"} {
		if code, body := ask("GET", "/api/shards", host); code != http.StatusOK {
			t.Errorf("host %q: %d %.200q", host, code, body)
		}
	}
	for _, site := range []string{"cross-site", "same-site"} {
		if code, _ := ask("GET", "/debug/pprof/heap", addr, "Sec-Fetch-Site", site); code != http.StatusForbidden {
			t.Errorf("a profile for a page of a %s: %d", site, code)
		}
	}
	for _, site := range []string{"none", "same-origin"} {
		if code, _ := ask("GET", "/debug/pprof/cmdline", addr, "Sec-Fetch-Site", site); code != http.StatusOK {
			t.Errorf("Sec-Fetch-Site %s: %d", site, code)
		}
	}
	if code, _ := ask("PUT", "/debug/log?level=debug", addr, "Origin", "http://evil.example"); code != http.StatusForbidden {
		t.Errorf("another site sets the log level: %d", code)
	}
}
