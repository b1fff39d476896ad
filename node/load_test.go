package node

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// Who asks a node again hears of what has changed, and of nothing else: an idle shard costs nothing.
func TestLoadBookTellsChanges(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newLoadBook(7, 20*time.Second)
	desc := &shard.Descriptor{Version: 1}
	news := func(id engine.ShardID, writes uint64) scheduler.News {
		return scheduler.News{Shard: id, Leads: true, Term: 3, Descriptor: desc, Bytes: 1 << 20, Load: scheduler.Load{Writes: writes}}
	}
	var all []scheduler.News
	for id := engine.ShardID(2); id < 1002; id++ {
		all = append(all, news(id, 0))
	}
	b.collect(now, all)
	table := newLoadTable()
	tell := func() int {
		mark := table.seen[1]
		rows, full := b.since(mark.book, mark.seq)
		for i := range rows {
			rows[i].Node = 1
		}
		a, err := decodeLoads(1, appendLoads(nil, b.name, b.seq, full, rows))
		if err != nil {
			t.Fatal(err)
		}
		table.take(1, a)
		return len(a.Rows)
	}
	if n := tell(); n != 1000 || len(table.rows) != 1000 {
		t.Fatalf("first: %d rows, %d in the table", n, len(table.rows))
	}
	if n := tell(); n != 0 {
		t.Errorf("nothing has changed, and %d rows were told", n)
	}
	for i := range 40 { // one is busy, at 100 writes per second
		now = now.Add(5 * time.Second)
		b.collect(now, []scheduler.News{news(5, uint64(500*(i+1)))})
		if n := tell(); n > 1 {
			t.Fatalf("one shard is busy, and %d rows were told", n)
		}
	}
	if w := table.rows[5].Writes; w < 90 || w > 110 {
		t.Errorf("%.0f writes per second, want 100", w)
	}
	for range 60 { // it falls silent: its rate decays without being touched
		now = now.Add(5 * time.Second)
		b.collect(now, nil)
		tell()
	}
	if w := table.rows[5].Writes; w != 0 || len(b.active) != 0 {
		t.Errorf("%.2f writes per second, %d active", w, len(b.active))
	}
	b.collect(now.Add(5*time.Second), []scheduler.News{{Shard: 6}}) // it leads one no more
	if n := tell(); n != 1 || table.rows[6] != nil {
		t.Errorf("%d rows, shard 6: %+v", n, table.rows[6])
	}
	// Another node has won it in a later term; what the first one says of an earlier term does not count.
	table.take(2, &loadsAnswer{Book: 9, Seq: 1, All: true, Rows: []loadRow{{Shard: 7, Node: 2, Leads: true, Term: 4}}})
	table.take(1, &loadsAnswer{Book: 7, Seq: b.seq, Rows: []loadRow{{Shard: 7, Node: 1, Leads: true, Term: 3}}})
	if table.rows[7].Node != 2 {
		t.Errorf("shard 7 is led by node %d", table.rows[7].Node)
	}
	// A node that has started anew says all again.
	if _, full := b.since(8, 5); !full {
		t.Error("another book: want everything")
	}
	if len(b.order) > 2*len(b.rows)+1024 {
		t.Errorf("%d marks", len(b.order))
	}
}
