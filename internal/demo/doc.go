// Package demo runs real node processes of the program's own binary on this machine: for `kiloraft demo`, its guided tour, and the
// end-to-end tests, which need the same: start, kill -9, restart, and a load of counters that proves that nothing was lost or done twice.
//
// Guarantees: a process that was started is dead when its owner's Stop returns, and also when the owner itself is killed (Linux). A
// step of the tour either held, with what was measured, or the tour ends with an error that says what did not.
//
// It imports internal/client and internal/load; it does not know how to connect, that is given to it.
package demo
