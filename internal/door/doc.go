// Package door has what the front doors of a node have in common, those for Redis clients, for clients of the native protocol and for HTTP: whose
// a connection is, so that nobody takes the share of others by opening more of them, and what the kernel may hold for it.
//
// It imports the standard library and golang.org/x/sys alone.
package door
