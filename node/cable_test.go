package node_test

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/kiloraft/kiloraft/node"
)

// cable is the network of one node: all its connections, which can be cut.
type cable struct {
	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
}

var errCut = errors.New("the cable is cut")

// plug makes a node's configuration use the cable.
func (c *cable) plug(cfg *node.Config) {
	cfg.Listener = cableListener{cfg.Listener, c}
	node.SetDial(cfg, func(ctx context.Context, addr string) (net.Conn, error) {
		var d net.Dialer
		nc, err := d.DialContext(ctx, "tcp", addr)
		if err == nil && !c.add(nc) {
			return nil, errCut
		}
		return nc, err
	})
}

// add takes note of a connection, and tells whether it may go on.
func (c *cable) add(nc net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		_ = nc.Close()
		return false
	}
	if c.conns == nil {
		c.conns = map[net.Conn]struct{}{}
	}
	c.conns[nc] = struct{}{}
	return true
}

// setCut cuts or mends it.
func (c *cable) setCut(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if cut {
		for nc := range c.conns {
			_ = nc.Close()
		}
		clear(c.conns)
	}
}

type cableListener struct {
	net.Listener
	c *cable
}

// Accept closes what comes while the cable is cut.
func (l cableListener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil || l.c.add(nc) {
			return nc, err
		}
	}
}
