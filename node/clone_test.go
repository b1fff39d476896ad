package node

import (
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/transport"
)

// TestPeerIsWhoItWas: a peer is let in if it is the node that was seen under its id, with a start that this node knows among its starts (rule
// Cluster9, FAULTS M11); what it was let in with is what the next one is compared with.
func TestPeerIsWhoItWas(t *testing.T) {
	f, err := loadFacts(&memFacts{})
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{facts: f}
	for _, c := range []struct {
		what     string
		identity id128
		starts   []uint64
		good     bool
	}{
		{"for the first time", id128{1}, []uint64{7}, true},
		{"again", id128{1}, []uint64{7}, true},
		{"of another directory", id128{2}, []uint64{7}, false},
		{"of another directory, which knows that start", id128{2}, []uint64{7, 8}, false},
		{"of a copy that missed the start", id128{1}, []uint64{5, 6}, false},
		{"after a start", id128{1}, []uint64{7, 9}, true},
		{"of a copy of before that start", id128{1}, []uint64{7}, false},
		{"of a copy that was started beside it", id128{1}, []uint64{7, 10}, false},
	} {
		err := n.acceptPeer(transport.PeerInfo{Node: 2, Identity: c.identity, Incarnations: c.starts, AdvertiseAddr: "h:2"})
		var refused *transport.Refused
		if (err == nil) != c.good || err != nil && (!errors.As(err, &refused) || refused.Reason != transport.ReasonClone) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
