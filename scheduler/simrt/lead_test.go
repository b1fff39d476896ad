package simrt

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/scheduler"
)

// TestLeadIsConfirmed: a leader that was paused, and deposed meanwhile, does not say what it knows of its shard before it is sure that it leads.
func TestLeadIsConfirmed(t *testing.T) {
	c := newCluster(t, Options{Seed: 55}, 1)
	put(t, c, 1, 1, "v")
	old, _ := c.lead(1)
	asked := func(n *Node) (answers [][]scheduler.Lead) {
		n.Sched.LeadAsync(1, func(part []scheduler.Lead) { answers = append(answers, part) })
		n.pump()
		c.Run(5 * time.Second)
		if len(answers) != 1 {
			t.Fatalf("%d answers", len(answers))
		}
		return answers
	}
	if got := asked(old); len(got[0]) != 1 || got[0][0].Descriptor == nil {
		t.Fatalf("the leader says %+v", got)
	}
	var stale []scheduler.Lead
	answered := false
	old.Pause(4 * time.Second)
	c.Isolate(old.ID, true) // it hears of nothing first
	old.Sched.LeadAsync(1, func(part []scheduler.Lead) { stale, answered = part, true })
	if err := c.Until(3*time.Second, func() bool { l := c.Leader(1); return l != nil && l != old }); err != nil {
		t.Fatal(err)
	}
	if answered {
		t.Fatal("it is not paused")
	}
	if err := c.Until(5*time.Second, func() bool { return answered }); err != nil {
		t.Fatal(err)
	}
	if len(stale) > 0 {
		t.Fatalf("a deposed leader says %+v", stale)
	}
}
