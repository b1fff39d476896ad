package auth

import (
	"bytes"
	"fmt"
	"slices"
)

// Role is what a user may do with some keys. Stored: never renumber.
type Role uint8

// The roles. Each includes those before it. Admin is of the whole cluster: it has no prefix, and includes all keys.
const (
	RoleNone  Role = 0
	RoleRead  Role = 1
	RoleWrite Role = 2
	RoleAdmin Role = 3
)

var roleNames = [...]string{"none", "read", "write", "admin"}

// String returns the role as the command line has it.
func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// ParseRole reads what String writes.
func ParseRole(s string) (Role, error) {
	if i := slices.Index(roleNames[:], s); i >= 0 {
		return Role(i), nil
	}
	return 0, fmt.Errorf("role %q: want read, write or admin", s)
}

// Grant gives a role on the keys that begin with Prefix; an empty one means all keys.
type Grant struct {
	Role   Role
	Prefix []byte
}

// Bounds of a user's grants.
const (
	GrantsMax      = 64
	PrefixBytesMax = 1024
)

// CheckGrants refuses grants that make no sense.
func CheckGrants(list []Grant) error {
	if len(list) > GrantsMax {
		return fmt.Errorf("%d grants: a user has at most %d", len(list), GrantsMax)
	}
	for i, g := range list {
		switch {
		case g.Role < RoleRead || g.Role > RoleAdmin:
			return fmt.Errorf("role %s: want read, write or admin", g.Role)
		case g.Role == RoleAdmin && len(g.Prefix) > 0:
			return fmt.Errorf("the role admin has no prefix: it is of the whole cluster")
		case len(g.Prefix) > PrefixBytesMax:
			return fmt.Errorf("a prefix of %d bytes: at most %d are allowed", len(g.Prefix), PrefixBytesMax)
		}
		for _, other := range list[:i] {
			if bytes.Equal(other.Prefix, g.Prefix) {
				return fmt.Errorf("two roles for the prefix %q", g.Prefix)
			}
		}
	}
	return nil
}

// Need is what a request takes.
type Need uint8

// The needs.
const (
	NeedUnknown Need = iota // nobody said: only nodes may
	NeedNone                // no credentials
	NeedUser                // any user with a role
	NeedRead                // read on the keys that the request names
	NeedWrite               // write on them
	NeedAdmin
	NeedNode // for nodes among themselves
)

var needNames = [...]string{"node", "nobody", "user", "read", "write", "admin", "node"}

// String names the need for messages and tables.
func (n Need) String() string { return needNames[n] }

// Access is what somebody may do. It does not change once it is made.
type Access struct {
	needs    [len(needNames)]bool // of Read and Write: on some keys at least
	readAll  bool
	writeAll bool
	grants   []Grant // that are about prefixes
	all      []Grant
}

func access(needs ...Need) *Access {
	a := &Access{}
	for _, n := range append(needs, NeedNone) {
		a.needs[n] = true
	}
	return a
}

var (
	nothing = access()
	// everything is what nodes may do, and anyone where security is off.
	everything = &Access{readAll: true, writeAll: true, needs: [...]bool{true, true, true, true, true, true, true}, all: []Grant{{Role: RoleAdmin}}}
)

// Compile makes the Access of a user with these grants.
func Compile(grants []Grant) *Access {
	a := access()
	a.all = slices.Clone(grants)
	for _, g := range grants {
		a.needs[NeedUser], a.needs[NeedRead] = true, true
		if g.Role >= RoleWrite {
			a.needs[NeedWrite] = true
		}
		if g.Role == RoleAdmin {
			a.needs[NeedAdmin] = true
		}
		if len(g.Prefix) == 0 {
			a.readAll = true
			a.writeAll = a.writeAll || g.Role >= RoleWrite
		} else {
			a.grants = append(a.grants, Grant{g.Role, bytes.Clone(g.Prefix)})
		}
	}
	return a
}

// Grants returns what the Access was made of.
func (a *Access) Grants() []Grant { return slices.Clone(a.all) }

// Allows tells whether a request with this need is allowed, as far as it depends on no key: of NeedRead and NeedWrite, whether
// there are any keys at all.
func (a *Access) Allows(n Need) bool { return a.needs[n] }

// All tells whether every key may be read, or with NeedWrite written: then no key needs to be looked at.
func (a *Access) All(n Need) bool { return a.readAll && (n != NeedWrite || a.writeAll) }

// Key tells whether a key may be read, or with NeedWrite written.
func (a *Access) Key(n Need, key []byte) bool {
	if a.All(n) {
		return true
	}
	for i := range a.grants {
		if g := &a.grants[i]; (n != NeedWrite || g.Role >= RoleWrite) && bytes.HasPrefix(key, g.Prefix) {
			return true
		}
	}
	return false
}

// Range tells whether all of [start, end) may be read, or with NeedWrite written. An empty end is plus infinity. A range must lie
// within one grant.
func (a *Access) Range(n Need, start, end []byte) bool {
	if a.All(n) {
		return true
	}
	for i := range a.grants {
		g := &a.grants[i]
		if n == NeedWrite && g.Role < RoleWrite || !bytes.HasPrefix(start, g.Prefix) {
			continue
		}
		if last := prefixEnd(g.Prefix); last == nil || len(end) > 0 && bytes.Compare(end, last) <= 0 {
			return true
		}
	}
	return false
}

// prefixEnd returns the first key behind those with the prefix, nil if there is none.
func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}
