package node_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node/nodetest"
)

// A node notes, durably, which peers know of its start, in each of its lives (rule Cluster9).
func TestNodeNotesWhoKnowsItsStart(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 1, 3)
	for range 2 {
		nodetest.Eventually(t, 30*time.Second, func() error {
			if n := c.Node(2).Met(); n != 2 {
				return fmt.Errorf("%d peers know", n)
			}
			return nil
		})
		c.Kill(2)
		c.Restart(2)
	}
}
