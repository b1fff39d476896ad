package scheduler

import (
	"testing"

	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// TestColdReadMeetsNewCut: what was being read from the store while a checkpoint replaced the record is read again at once, though a snapshot holds the
// next cut by then: it may hold it for minutes, and neither writes nor reads wait for that (rule State1).
func TestColdReadMeetsNewCut(t *testing.T) {
	n := newStoreNode(t)
	checkpoint := func() {
		n.l.checkpoint(n.r)
		n.s.WriteCheckpoint()
		n.spin(2)
	}
	if err := n.put(1, 10); err != nil {
		t.Fatal(err)
	}
	checkpoint()
	if err := n.put(2, 10); err != nil { // what the checkpoint that comes in between writes
		t.Fatal(err)
	}
	var slow []*state.ReadJob
	n.s.readJob = func(job *state.ReadJob) { slow = append(slow, job) }
	w := shard.Write{Shard: 1, Version: 1, Conditions: []shard.Condition{{Kind: shard.ConditionExists, Key: []byte("00001/1")}},
		Ops: []shard.Op{{Kind: shard.OpPut, Key: []byte("00001/3"), Value: []byte("3")}}}
	rd := shard.Read{Shard: 1, Version: 1, Keys: [][]byte{[]byte("00001/1")}}
	done := 0
	for kind, body := range map[Kind][]byte{KindWrite: shard.AppendWrite(nil, &w), KindRead: shard.AppendRead(nil, &rd)} {
		n.s.Submit(&Request{Kind: kind, Shard: 1, Body: body, Done: func(req *Request) {
			if done++; req.Err != nil {
				t.Error(kind, req.Err)
			}
		}})
	}
	n.spin(3)
	if len(slow) != 2 || done != 0 {
		t.Fatalf("%d reads of the store, %d answers", len(slow), done)
	}
	checkpoint()
	if n.r.machine.Freezing() || !n.l.hold(n.r) {
		t.Fatal("no cut between the one that was written and the one that is held: the test tests nothing")
	}
	n.s.readJob = func(job *state.ReadJob) {
		n.db.RunJob(job)
		job.Done(job)
	}
	for _, job := range slow {
		n.s.readJob(job)
	}
	n.spin(20)
	if done != 2 {
		t.Fatalf("%d of 2 answers while the cut is held", done)
	}
}
