package resp_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The programs of docs/clients.md run as they stand there, but for the port. They need the packages python3-redis, node-redis and ruby-redis of Debian.
func TestGuide(t *testing.T) {
	needRedis(t, "node", "ruby")
	page, err := os.ReadFile("../../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	_, addrs := cluster(t, 3, 100)
	for _, p := range []struct {
		language, file string
		command        []string
	}{
		{"python", "a.py", []string{"/usr/bin/python3"}},
		{"javascript", "a.js", []string{"node"}},
		{"ruby", "a.rb", []string{"ruby"}},
	} {
		_, program, ok := strings.Cut(string(page), "\n```"+p.language+"\n")
		program, _, end := strings.Cut(program, "\n```\n")
		if !ok || !end || !strings.Contains(program, "6379") {
			t.Errorf("docs/clients.md has no program in %s", p.language)
			continue
		}
		_, port, _ := strings.Cut(addrs[len(p.language)%3], ":")
		path := filepath.Join(t.TempDir(), p.file)
		if err := os.WriteFile(path, []byte(strings.Replace(program, "6379", port, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), p.command[0], append(p.command[1:], path)...)
		cmd.Env = append(os.Environ(), "NODE_PATH=/usr/share/nodejs")
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ok\n" {
			t.Errorf("%s: %v\n%s", p.language, err, out)
		}
	}
}
