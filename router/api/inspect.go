package api

import "github.com/kiloraft/kiloraft/internal/mp"

// MethodInspect (InspectRequest → InspectAnswer): something that this node tells of itself for people who look for a problem: metrics, a
// profile, the last log lines. Also served by a node that is in no cluster.
const MethodInspect Method = 60

// InspectRequest names what is wanted: config, version, metrics, log, goroutines, heap, cpu, replicas, heat or history.
type InspectRequest struct {
	What    string
	Seconds uint64 // cpu: how long; at most 30
}

// InspectAnswer holds text or JSON, or a profile, compressed by gzip.
type InspectAnswer struct {
	Data []byte
}

// Append implements Body.
func (q *InspectRequest) Append(b []byte) []byte {
	return mp.AppendUint(mp.AppendBin(fields(b, 2), []byte(q.What)), q.Seconds)
}

func (q *InspectRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(2)
	what := r.Bin()
	if len(what) > textBytesMax {
		r.Fail("text")
		return
	}
	q.What, q.Seconds = string(what), r.Uint()
	r.Skip(extra)
}

// Append implements Body.
func (a *InspectAnswer) Append(b []byte) []byte { return mp.AppendBin(fields(b, 1), a.Data) }

func (a *InspectAnswer) read(r *mp.Reader) {
	extra := r.ArrayMin(1)
	a.Data = append([]byte(nil), r.Bin()...)
	r.Skip(extra)
}
