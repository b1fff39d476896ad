package client

import "context"

// UserAdmin is what knows and changes the users of a cluster. A Cluster may implement it.
type UserAdmin interface {
	Users(ctx context.Context) ([]User, error)
	// AddUser adds a user; an empty password means certificates only.
	AddUser(ctx context.Context, name string, password []byte, grants []Grant) error
	// SetPassword changes a password; the empty name is the caller.
	SetPassword(ctx context.Context, name string, password []byte) error
	// Grant puts each of grants in the place of the one with the same prefix; the role none takes it away.
	Grant(ctx context.Context, name string, grants []Grant) error
	RemoveUser(ctx context.Context, name string) error
	WhoAmI(ctx context.Context) (User, error)
}

// User is a user of the cluster.
type User struct {
	Name     string
	Password bool // has one; of WhoAmI: has used one
	Grants   []Grant
	Created  int64 // unix ms
	Updated  int64
}

// Grant is a role on the keys with a prefix, or on all keys.
type Grant struct {
	Role   string // read write admin; none
	Prefix []byte
}
