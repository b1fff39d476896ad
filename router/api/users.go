package api

import (
	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// The methods about users. Any node serves them.
const (
	// MethodUsers (empty → UsersPage): all users, without their passwords.
	MethodUsers Method = 54
	// MethodUserSet (UserRequest → empty): add, change or remove a user.
	MethodUserSet Method = 55
	// MethodPassword (PasswordRequest → empty): give oneself another password.
	MethodPassword Method = 56
	// MethodWhoAmI (empty → UsersPage with one user): who the node thinks the caller is.
	MethodWhoAmI Method = 57
)

// UserAction is what MethodUserSet does. Sent: never renumber.
type UserAction uint8

// The actions.
const (
	UserAdd      UserAction = 1 // Name, Grants, and Password if there is one
	UserPassword UserAction = 2 // empty: certificates only
	UserGrant    UserAction = 3 // Grants, each instead of the one that has the same prefix; auth.RoleNone takes it away
	UserRemove   UserAction = 4
)

// UserRequest changes a user.
type UserRequest struct {
	Action   UserAction
	Name     string
	Password []byte
	Grants   []auth.Grant
}

// PasswordRequest changes the caller's own password.
type PasswordRequest struct{ Password []byte }

// UsersPage lists users by name.
type UsersPage struct{ Users []UserInfo }

// UserInfo describes a user.
type UserInfo struct {
	Name        string
	HasPassword bool
	Grants      []auth.Grant
	Created     int64 // unix ms
	Updated     int64
}

func readSecret(r *mp.Reader) []byte {
	b := r.Bin()
	if len(b) > auth.PasswordBytesMax {
		r.Fail("password too long")
		return nil
	}
	return append([]byte(nil), b...)
}

func appendGrants(b []byte, l []auth.Grant) []byte {
	return appendList(b, l, func(b []byte, g *auth.Grant) []byte {
		return mp.AppendBin(mp.AppendUint(fields(b, 2), uint64(g.Role)), g.Prefix)
	})
}

func readGrants(r *mp.Reader) []auth.Grant {
	return list(r, auth.GrantsMax, func(r *mp.Reader) (g auth.Grant) {
		extra := r.ArrayMin(2)
		role := r.Uint()
		if role > uint64(auth.RoleAdmin) {
			r.Fail("role")
		}
		g.Role, g.Prefix = auth.Role(role), readKey(r)
		r.Skip(extra)
		return g
	})
}

// Append implements Body.
func (q *UserRequest) Append(b []byte) []byte {
	b = appendText(mp.AppendUint(fields(b, 4), uint64(q.Action)), q.Name)
	return appendGrants(mp.AppendBin(b, q.Password), q.Grants)
}

func (q *UserRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(4)
	q.Action, q.Name, q.Password, q.Grants = UserAction(min(r.Uint(), 255)), readText(r), readSecret(r), readGrants(r)
	r.Skip(extra)
}

// Append implements Body.
func (q *PasswordRequest) Append(b []byte) []byte { return mp.AppendBin(fields(b, 1), q.Password) }

func (q *PasswordRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(1)
	q.Password = readSecret(r)
	r.Skip(extra)
}

// Append implements Body.
func (p *UsersPage) Append(b []byte) []byte {
	return appendList(fields(b, 1), p.Users, func(b []byte, u *UserInfo) []byte {
		b = mp.AppendBool(appendText(fields(b, 5), u.Name), u.HasPassword)
		return mp.AppendInt(mp.AppendInt(appendGrants(b, u.Grants), u.Created), u.Updated)
	})
}

func (p *UsersPage) read(r *mp.Reader) {
	extra := r.ArrayMin(1)
	p.Users = list(r, auth.UsersMax, func(r *mp.Reader) (u UserInfo) {
		extra := r.ArrayMin(5)
		u.Name, u.HasPassword, u.Grants = readText(r), r.Bool(), readGrants(r)
		u.Created, u.Updated = r.Int(), r.Int()
		r.Skip(extra)
		return u
	})
	r.Skip(extra)
}
