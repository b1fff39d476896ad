package node

import "github.com/kiloraft/kiloraft/scheduler"

// SetFault makes an init ask f between its steps.
func SetFault(cfg *Config, f func(step string) error) { cfg.fault = f }

// SetTune lets a test change what the scheduler gets.
func SetTune(cfg *Config, f func(*scheduler.Config)) { cfg.tune = f }

// Peers returns how many connections with other nodes there are, and with how many nodes.
func (n *Node) Peers() (conns, nodes int) {
	seen := map[uint64]bool{}
	for _, c := range n.tr.Conns() {
		if !c.Client {
			conns++
			seen[uint64(c.Node)] = true
		}
	}
	return conns, len(seen)
}
