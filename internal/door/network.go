package door

import (
	"net"
	"net/netip"
)

// Network is the part of an address (host:port) that one person controls: a host of IPv4, a /64 of IPv6. What is no such address is
// returned as it is.
func Network(addr string) string {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return addr
	}
	a := ap.Addr().Unmap()
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}

// Of is the Network that a connection comes from.
func Of(c net.Conn) string {
	if a := c.RemoteAddr(); a != nil {
		return Network(a.String())
	}
	return ""
}
