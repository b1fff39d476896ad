package router

import (
	"errors"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// refusing is a Sender whose nodes have too much to do, as a Pool hears of it.
type refusing struct{ status *transport.StatusError }

func (s refusing) Send(_ engine.NodeID, _ string, _ api.Method, _ uint8, _ time.Time, _ []byte, done func([]byte, error)) {
	done(nil, AnswerError(s.status))
}

// What refuses a write because there is too much to do is met when there is too much to do: it should cost the client little.
func BenchmarkRefused(b *testing.B) {
	status, body := shard.EncodeError(nil, shard.ErrOverloaded)
	c := New(refusing{&transport.StatusError{Status: uint16(status), Body: body}}, nil, Config{})
	defer c.Close()
	d := desc(10, "", "", 1)
	c.m.Update(*d)
	c.m.SetLeader(10, 1)
	ctx := FailOverloaded(b.Context())
	w := &shard.Write{Ops: []shard.Op{{Kind: shard.OpPut, Key: []byte("key"), Value: make([]byte, 128)}}}
	b.ReportAllocs()
	for b.Loop() {
		own := *w
		c.GoWrite(ctx, &own, func(_ *shard.Result, err error) {
			if !errors.Is(err, shard.ErrOverloaded) {
				b.Fatal(err)
			}
		})
	}
}
