package cli

import (
	"context"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/router/api"
)

var _ client.Inspector = (*remote)(nil)

// Inspect implements client.Inspector.
func (r *remote) Inspect(ctx context.Context, id uint64, addr, what string, seconds uint64) ([]byte, error) {
	b, err := r.c.Call(ctx, engine.NodeID(id), addr, api.MethodInspect, (&api.InspectRequest{What: what, Seconds: seconds}).Append(nil))
	if err != nil {
		return nil, mark(fmt.Errorf("node at %s: %w", addr, err))
	}
	var a api.InspectAnswer
	if err := api.Decode(b, &a); err != nil {
		return nil, err
	}
	return node.Inflate(a.Data)
}
