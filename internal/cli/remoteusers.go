package cli

import (
	"context"
	"fmt"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/router/api"
)

var _ client.UserAdmin = (*remote)(nil)

func toUser(u *api.UserInfo) client.User {
	out := client.User{Name: u.Name, Password: u.HasPassword, Created: u.Created, Updated: u.Updated}
	for _, g := range u.Grants {
		out.Grants = append(out.Grants, client.Grant{Role: g.Role.String(), Prefix: g.Prefix})
	}
	return out
}

// Users implements client.UserAdmin.
func (r *remote) Users(ctx context.Context) ([]client.User, error) {
	var page api.UsersPage
	if err := r.ask(ctx, api.MethodUsers, nil, &page); err != nil {
		return nil, err
	}
	out := []client.User{}
	for i := range page.Users {
		out = append(out, toUser(&page.Users[i]))
	}
	return out, nil
}

// WhoAmI implements client.UserAdmin.
func (r *remote) WhoAmI(ctx context.Context) (client.User, error) {
	var page api.UsersPage
	if err := r.ask(ctx, api.MethodWhoAmI, nil, &page); err != nil {
		return client.User{}, err
	}
	if len(page.Users) != 1 {
		return client.User{}, fmt.Errorf("the answer has %d users", len(page.Users))
	}
	return toUser(&page.Users[0]), nil
}

func (r *remote) setUser(ctx context.Context, q *api.UserRequest, grants []client.Grant) error {
	for _, g := range grants {
		role, err := auth.ParseRole(g.Role)
		if err != nil {
			return fmt.Errorf("%w: %w", client.ErrInvalid, err)
		}
		q.Grants = append(q.Grants, auth.Grant{Role: role, Prefix: g.Prefix})
	}
	return r.tell(ctx, api.MethodUserSet, q, nil)
}

// AddUser implements client.UserAdmin.
func (r *remote) AddUser(ctx context.Context, name string, password []byte, grants []client.Grant) error {
	return r.setUser(ctx, &api.UserRequest{Action: api.UserAdd, Name: name, Password: password}, grants)
}

// SetPassword implements client.UserAdmin.
func (r *remote) SetPassword(ctx context.Context, name string, password []byte) error {
	if name == "" {
		return r.tell(ctx, api.MethodPassword, &api.PasswordRequest{Password: password}, nil)
	}
	return r.setUser(ctx, &api.UserRequest{Action: api.UserPassword, Name: name, Password: password}, nil)
}

// Grant implements client.UserAdmin.
func (r *remote) Grant(ctx context.Context, name string, grants []client.Grant) error {
	return r.setUser(ctx, &api.UserRequest{Action: api.UserGrant, Name: name}, grants)
}

// RemoveUser implements client.UserAdmin.
func (r *remote) RemoveUser(ctx context.Context, name string) error {
	return r.setUser(ctx, &api.UserRequest{Action: api.UserRemove, Name: name}, nil)
}
