package cli

import (
	"context"
	"errors"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/config"
)

func dialRemote(context.Context, *config.Config) (client.Cluster, error) {
	return nil, errors.New("not implemented")
}
