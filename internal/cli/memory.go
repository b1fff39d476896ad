package cli

import (
	"log/slog"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// memoryShare is the part of the container's or the machine's memory that a node may take by default. The rest is for the page cache, which
// holds the state, and for what Go does not count.
const memoryShare = 0.75

// limitMemory tells the garbage collector how much memory the process may take: set, else what GOMEMLIMIT says, else a share of what has is asked
// for. It is a soft limit: garbage is collected earlier near it, but what is in use is not bounded by it (docs/sizing.md says what does that).
func limitMemory(log *slog.Logger, set int64, gomemlimit string, has func() (uint64, error)) {
	from := "memory-limit"
	switch {
	case set > 0:
	case gomemlimit != "": // the runtime has read it
		log.Info("memory limit", "bytes", debug.SetMemoryLimit(-1), "from", "GOMEMLIMIT")
		return
	default:
		all, err := has()
		if err != nil {
			log.Warn("no memory limit: how much there is cannot be told; set memory-limit", "err", err)
			return
		}
		set, from = int64(memoryShare*float64(all)), "memory of the container or machine"
	}
	debug.SetMemoryLimit(set)
	log.Info("memory limit", "bytes", set, "from", from)
}

// memoryThere returns how much memory this process can have: its container's limit, or the machine's memory if that is less.
func memoryThere() (uint64, error) {
	machine, err := memlimit.FromSystem()
	container, cerr := memlimit.FromCgroup()
	switch {
	case cerr != nil:
		return machine, err
	case err != nil:
		return container, nil
	}
	return min(machine, container), nil
}
