// Package prefetch asks the CPU for memory that will be wanted soon.
//
// With thousands of shards what an event looks at is in none of the CPU's caches, and each line of it is waited for, a tenth of a microsecond from
// main memory. Who knows what it will look at some events later asks for it here, goes on meanwhile, and finds it near. Unlike
// a load, a prefetch makes nothing wait for its outcome, cannot fault whatever the address, and is no access: it has no effect but on time. On an
// architecture without one here, nothing is done.
//
// It imports nothing.
package prefetch
