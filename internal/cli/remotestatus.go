package cli

import (
	"context"
	"errors"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/router/api"
)

// Status implements client.Cluster. It is the view of the node that answers.
func (r *remote) Status(ctx context.Context) (client.Status, error) {
	var st client.Status
	if err := r.ask(ctx, api.MethodStatus, nil, &st); err != nil {
		return st, err
	}
	if st.ClusterID == "" {
		return st, errors.New("the node that answered is of an older version, which does not tell this: upgrade the nodes, or use its version of this program")
	}
	if st.Problems == nil {
		st.Problems = []string{} // a list in JSON
	}
	return st, nil
}
