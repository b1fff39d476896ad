package node

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// What certificates and passwords keep out, other sites in a browser of this machine must not get either. Where nobody is asked who they
// are, two things are looked at besides http.CrossOriginProtection:
//
//   - A site can have its own name resolve to a loopback address (DNS rebinding): for the browser this door is that site then. So what comes
//     in at a loopback address must call it by an address, by localhost, or by the name that the node was told to listen on.
//   - A page may ask for profiles, which cost time, although it does not get to see them: browsers say so in Sec-Fetch-Site.

// foreign says why a request is another site's doing, or "".
func (n *Node) foreign(r *http.Request) string {
	if site := r.Header.Get("Sec-Fetch-Site"); strings.HasPrefix(r.URL.Path, debugPath) && (site == "cross-site" || site == "same-site") {
		return "a browser asks for this on behalf of another site"
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if n.sec.on() || !ok || !loopback(local.String()) {
		return ""
	}
	if host := hostName(r.Host); !ownName(host, hostName(n.cfg.HTTP)) {
		return "this is not " + strings.ToValidUTF8(brief(host), "?") + ": without certificates a node that listens on a loopback address answers to that address and to localhost"
	}
	return ""
}

// debugPath is where the log and the profiles are.
const debugPath = "/debug/"

// loopback tells whether an address with a port is one of this machine alone.
func loopback(addr string) bool {
	a, err := netip.ParseAddrPort(addr)
	return err == nil && a.Addr().Unmap().IsLoopback()
}

// hostName is a Host header without its port, and an IPv6 address without its brackets.
func hostName(header string) string {
	if host, _, err := net.SplitHostPort(header); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(header, "["), "]")
}

// ownName tells whether no other site can have this name in a browser of this machine. Requests of HTTP/1.0 have none.
func ownName(host, told string) bool {
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || told != "" && host == strings.ToLower(strings.TrimSuffix(told, "."))
}
