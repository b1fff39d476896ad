package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/recovery"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
)

// TestRecoverStepByStep is a recovery where the survivors are on machines of their own: reports and plan are files. It also shows what
// is refused.
func TestRecoverStepByStep(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 3, 3)
	for i := range 3 {
		c.Kill(i)
	}
	s, tmp := newShell(t), t.TempDir()
	report := func(i int) string { return filepath.Join(tmp, fmt.Sprintf("n%d.json", i+1)) }
	refused := func(why, line string) {
		t.Helper()
		if code, _, stderr := s.run(strings.Fields(line)...); code != 1 || !strings.Contains(stderr, why) {
			t.Errorf("%s: exit %d, %q, want %q", line, code, stderr, why)
		}
	}
	for i := range 3 {
		if out := s.want(0, fmt.Sprintf("debug recover inspect --data-dir %s --out %s", c.Dir(i), report(i))); !strings.Contains(out, "1(meta)") {
			t.Errorf("%s", out)
		}
	}
	s.want(2, "debug recover")
	s.want(2, "debug recover --unsafe --lost 2,3")
	s.want(2, "debug recover --lost two --data-dir "+c.Dir(0))
	refused("no data directory", "debug recover --lost 2,3 --data-dir "+tmp)
	refused("no survivor has ever heard", "debug recover --lost 2,3,9 --data-dir "+c.Dir(0))
	refused("neither lost nor given", "debug recover plan --lost 2 "+report(0))
	refused("given as a survivor", fmt.Sprintf("debug recover plan --lost 2,3 %s %s", report(0), report(1)))
	refused("given twice", fmt.Sprintf("debug recover plan --lost 2,3 %s %s", report(0), report(0)))
	refused("not needed", fmt.Sprintf("debug recover plan --lost 2 %s %s", report(0), report(2)))

	planFile := filepath.Join(tmp, "plan.json")
	s.want(0, fmt.Sprintf("debug recover plan --lost 2,3 --out %s %s", planFile, report(0)))
	s.want(0, "debug recover apply --data-dir "+c.Dir(0)+" "+planFile) // shows only
	s.stdin = "yes\n"
	refused("nothing was changed", "debug recover apply --unsafe --data-dir "+c.Dir(0)+" "+planFile)
	refused("the plan was made from nodes 1", "debug recover apply --unsafe -y --data-dir "+c.Dir(1)+" "+planFile)
	b, err := os.ReadFile(planFile)
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(tmp, "changed.json")
	if err := os.WriteFile(changed, []byte(regexp.MustCompile(`"term": 10\d{5}`).ReplaceAllString(string(b), `"term": 1`)), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("the plan is not what was made", "debug recover apply --unsafe -y --data-dir "+c.Dir(0)+" "+changed)
	var plan recovery.Plan
	s.json(0, "debug recover plan --lost 2,3 "+report(0), &plan)
	if len(plan.Shards) != 4 {
		t.Errorf("%+v", plan)
	}
	s.stdin = "recover " + plan.Cluster[:8] + "\n"
	var done recovered
	s.json(0, "debug recover apply --unsafe --data-dir "+c.Dir(0)+" "+planFile, &done)
	if len(done.Applied) != 1 || done.Applied[0].Shards != 4 || done.Applied[0].Already != 0 {
		t.Errorf("%+v", done.Applied)
	}
	s.json(0, "debug recover apply --unsafe -y --data-dir "+c.Dir(0)+" "+planFile, &done)
	if done.Applied[0].Already != 4 {
		t.Errorf("once more: %+v", done.Applied)
	}
	refused("not needed", "debug recover --unsafe -y --lost 2,3 --data-dir "+c.Dir(0))
	c.Restart(0)
	nodetest.Eventually(t, 20*time.Second, func() error {
		_, err := c.Node(0).Client().Put(t.Context(), []byte("k"), []byte("v"))
		return err
	})
	refused("in use", "debug recover inspect --data-dir "+c.Dir(0))

	// A byte is wrong on the other disk: it is no source.
	f, err := os.OpenFile(node.StatePath(c.Dir(1)), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b = make([]byte, 3*4096)
	if _, err := f.ReadAt(b, 4*4096); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x55
	}
	if _, err := f.WriteAt(b, 4*4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	refused("damaged", "debug recover inspect --data-dir "+c.Dir(1))
}
