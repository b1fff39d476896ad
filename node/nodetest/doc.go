// Package nodetest runs whole nodes in one process, for tests: on free ports of the loopback, with directories that the test owns.
//
// It may import what node may, and is imported by tests only.
package nodetest
