// Package certs makes the certificates of a cluster and gives connections their TLS configuration.
//
//   - A node's certificate has NodeUnit among its organizational units. It serves and it dials; whoever holds one is trusted
//     as a node.
//   - Any other certificate of the same authority is a client's, and its common name is the user's name.
//
// Guarantees: TLS 1.3 only. Who dials checks that the other side is a node, and that its certificate is for the host that was
// dialled. Files reads its three files again, at most once per second, when a connection begins: new certificates and new
// authorities take effect for the connections that begin then, and those that exist go on. Files that do not fit together, as in
// the middle of a swap, change nothing. Sessions are never resumed, so every connection shows its certificate.
//
// Keys are ECDSA P-256. It imports the standard library and internal/durable.
package certs
