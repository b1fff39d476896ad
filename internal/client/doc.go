// Package client is what the command line, the bulk loader, the benchmark and the demo know of a cluster: two small interfaces
// and the kinds of errors that decide exit codes. The real implementation (remote.go) wraps router.Client over connections to
// nodes; clienttest has one in memory.
//
// Guarantees: every error of an implementation that a user must tell apart is marked with one of the sentinels below; an
// error without a mark is a plain failure. A write whose outcome is unknown says so (ErrUnknown), never anything else.
package client
