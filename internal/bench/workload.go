package bench

import (
	"fmt"
	"slices"
	"strings"
)

// opKind is one kind of request.
type opKind int

const (
	opRead opKind = iota
	opUpdate
	opInsert
	opScan
	opReadModifyWrite
	opKinds
)

var opNames = [opKinds]string{"read", "update", "insert", "scan", "rmw"}

// workload is a mix of requests: weights in percent.
type workload struct {
	name    string
	weights [opKinds]int
	keys    string // uniform, zipfian or latest
}

var workloads = []workload{
	{"write", [opKinds]int{opUpdate: 100}, "uniform"},
	{"read", [opKinds]int{opRead: 100}, "uniform"},
	{"mixed", [opKinds]int{opRead: 50, opUpdate: 50}, "uniform"},
	{"mixed90", [opKinds]int{opRead: 90, opUpdate: 10}, "uniform"},
	{"scan", [opKinds]int{opScan: 100}, "uniform"},
	{"ycsb-a", [opKinds]int{opRead: 50, opUpdate: 50}, "zipfian"},
	{"ycsb-b", [opKinds]int{opRead: 95, opUpdate: 5}, "zipfian"},
	{"ycsb-c", [opKinds]int{opRead: 100}, "zipfian"},
	{"ycsb-d", [opKinds]int{opRead: 95, opInsert: 5}, "latest"},
	{"ycsb-e", [opKinds]int{opScan: 95, opInsert: 5}, "zipfian"},
	{"ycsb-f", [opKinds]int{opRead: 50, opReadModifyWrite: 50}, "zipfian"},
}

// Names lists the workloads.
func Names() []string {
	var out []string
	for _, w := range workloads {
		out = append(out, w.name)
	}
	return out
}

func findWorkload(name string) (workload, error) {
	i := slices.IndexFunc(workloads, func(w workload) bool { return w.name == name })
	if i < 0 {
		return workload{}, fmt.Errorf("workload %q: want one of %s", name, strings.Join(Names(), ", "))
	}
	return workloads[i], nil
}

// pick turns a number below 100 into a kind of request.
func (w *workload) pick(n int) opKind {
	for k, weight := range w.weights {
		if n < weight {
			return opKind(k)
		}
		n -= weight
	}
	panic("bench: weights of " + w.name + " are below 100")
}

// needsData tells whether the keys must exist before the run.
func (w *workload) needsData() bool { return w.weights[opUpdate]+w.weights[opInsert] < 100 }

func (w *workload) has(k opKind) bool { return w.weights[k] > 0 }
