// Package e2e holds the end-to-end tests: real processes of the built binary, on this machine, with real files, real disks and kill -9.
//
// `go test ./internal/e2e` runs a form that takes a couple of minutes on two cores; KILORAFT_E2E=full runs the long one: all of Go's source
// tree instead of a part, 10,000 shards, a minute of idleness. The tests need the Go toolchain and nothing else. Every process that a test
// starts is dead when it ends, and dies with the test binary if that is killed.
package e2e
