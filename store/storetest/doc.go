// Package storetest holds the conformance suites of the stores: what every implementation of the raft log and of the state must
// do, whatever it is made of. TestLog and TestState are called by the tests of each implementation; LogDriver runs random
// workloads on a raft log beside a model of what was acknowledged, and serves the crash tests.
//
// It is imported by tests only, and may import engine and the packages of store.
package storetest
