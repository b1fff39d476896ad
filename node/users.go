package node

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// serveUsers serves the methods about users.
func (c *core) serveUsers(ctx context.Context, q *incoming) ([]byte, error) {
	switch q.method {
	case api.MethodUsers:
		page, err := c.usersPage(ctx)
		if err != nil {
			return nil, err
		}
		return page.Append(nil), nil
	case api.MethodUserSet:
		var r api.UserRequest
		if err := api.Decode(q.body, &r); err != nil {
			return nil, err
		}
		return nil, c.setUser(ctx, &r)
	case api.MethodPassword:
		var r api.PasswordRequest
		if err := api.Decode(q.body, &r); err != nil {
			return nil, err
		}
		if q.id == nil || q.id.How == auth.ByNothing || q.id.How == auth.ByNode {
			return nil, denied("nobody in particular has no password")
		}
		return nil, c.setUser(ctx, &api.UserRequest{Action: api.UserPassword, Name: q.id.Name, Password: r.Password})
	}
	return nil, errNoMethod(q.method)
}

// whoAmI tells the caller who it is to this node.
func whoAmI(q *incoming) *api.UsersPage {
	u := api.UserInfo{Name: "anyone"}
	a := auth.Anyone().Access()
	if q.id != nil {
		u.Name, a = q.id.Name, q.id.Access()
		u.HasPassword = q.id.How == auth.ByPassword
	}
	u.Grants = a.Grants()
	return &api.UsersPage{Users: []api.UserInfo{u}}
}

func (c *core) usersPage(ctx context.Context) (*api.UsersPage, error) {
	page := &api.UsersPage{}
	err := c.scanUsers(ctx, func(u *placement.UserRecord) {
		page.Users = append(page.Users, api.UserInfo{Name: u.Name, HasPassword: u.Hash != "", Grants: u.Grants, Created: u.CreateMS, Updated: u.UpdateMS})
	})
	return page, err
}

// scanUsers calls f with each user. A record that cannot be read is left out and logged: its user may do nothing.
func (c *core) scanUsers(ctx context.Context, f func(u *placement.UserRecord)) error {
	return c.meta.scan(ctx, []byte(placement.PrefixUser), placement.PrefixEnd(placement.PrefixUser), func(key, value []byte) error {
		u, err := placement.DecodeUser(value)
		if err == nil && string(placement.UserKey(u.Name)) != string(key) {
			err = fmt.Errorf("the record is of user %q", u.Name)
		}
		if err != nil {
			c.n.log.Error("a user's record cannot be read", "key", string(key), "err", err)
			return nil
		}
		f(&u)
		return nil
	})
}

// syncUsers brings what this node knows of the users in line with meta.
func (c *core) syncUsers(ctx context.Context) error {
	var list []auth.User
	if err := c.scanUsers(ctx, func(u *placement.UserRecord) { list = append(list, u.User) }); err != nil {
		return err
	}
	c.n.sec.users.Update(list)
	return nil
}

// setUser changes a user in meta, and has all nodes look.
func (c *core) setUser(ctx context.Context, r *api.UserRequest) error {
	if err := auth.CheckName(r.Name); err != nil {
		return malformed(err)
	}
	hash := ""
	if len(r.Password) > 0 {
		if err := auth.CheckPassword(r.Password); err != nil {
			return malformed(err)
		}
		var err error
		if hash, err = c.n.sec.users.Hash(ctx, r.Password); err != nil {
			return &shard.UnavailableError{Reason: err.Error()}
		}
	}
	key := placement.UserKey(r.Name)
	for {
		value, version, err := c.meta.get(ctx, key)
		if err != nil {
			return err
		}
		var op shard.Op
		if rec, err := c.changeUser(r, hash, value, version != 0); err != nil {
			return err
		} else if rec == nil {
			op = del(key)
		} else {
			op = put(key, rec.Append(nil))
		}
		err = c.meta.write(ctx, []shard.Condition{{Kind: shard.ConditionVersion, Key: key, Version: version}}, []shard.Op{op})
		if isConditionFailed(err) {
			continue
		}
		if err != nil {
			return err
		}
		c.nodesChanged(ctx)
		return nil
	}
}

// changeUser returns what a user's record is to be; nil: none.
func (c *core) changeUser(r *api.UserRequest, hash string, value []byte, exists bool) (*placement.UserRecord, error) {
	now := time.Now().UnixMilli()
	rec := placement.UserRecord{User: auth.User{Name: r.Name}, CreateMS: now}
	if exists {
		var err error
		if rec, err = placement.DecodeUser(value); err != nil && r.Action != api.UserRemove {
			return nil, err
		}
	}
	rec.UpdateMS = now
	switch {
	case r.Name == auth.Root && r.Action != api.UserPassword && r.Action != api.UserRemove:
		return nil, &shard.InvalidError{What: "root is there always, as an administrator: it can be given a password, or lose it"}
	case r.Action == api.UserAdd && exists:
		return nil, &shard.InvalidError{What: fmt.Sprintf("user %s exists", r.Name)}
	case r.Action == api.UserAdd && c.n.sec.users.Len() >= auth.UsersMax:
		return nil, &shard.InvalidError{What: fmt.Sprintf("there are %d users: that is the limit", auth.UsersMax)}
	case r.Action != api.UserAdd && !exists && r.Name != auth.Root:
		return nil, fmt.Errorf("user %s: %w", r.Name, shard.ErrNotFound)
	}
	switch r.Action {
	case api.UserAdd:
		rec.Hash = hash
		rec.Grants = mergeGrants(nil, r.Grants)
	case api.UserPassword:
		rec.Hash = hash
	case api.UserGrant:
		rec.Grants = mergeGrants(rec.Grants, r.Grants)
	case api.UserRemove:
		return nil, nil
	default:
		return nil, &shard.InvalidError{What: fmt.Sprintf("unknown action %d on a user", r.Action)}
	}
	if err := auth.CheckGrants(rec.Grants); err != nil {
		return nil, malformed(err)
	}
	return &rec, nil
}

// mergeGrants puts each of more in the place of the grant with the same prefix; a role of none takes it away.
func mergeGrants(list, more []auth.Grant) []auth.Grant {
	out := slices.Clone(list)
	for _, g := range more {
		out = slices.DeleteFunc(out, func(o auth.Grant) bool { return bytes.Equal(o.Prefix, g.Prefix) })
		if g.Role != auth.RoleNone {
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b auth.Grant) int { return bytes.Compare(a.Prefix, b.Prefix) })
	return out
}
