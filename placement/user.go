package placement

import (
	"fmt"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// PrefixUser is the prefix of the users' keys.
const PrefixUser = "user/"

// UserKey holds the UserRecord of a user.
func UserKey(name string) []byte { return []byte(PrefixUser + name) }

// UserRecord is a user of the cluster. The password is stored as a hash only.
type UserRecord struct {
	auth.User
	CreateMS int64 // unix time
	UpdateMS int64
}

// userHashMax bounds an encoded hash.
const userHashMax = 512

// Append encodes the record: [name, hash, [[role, prefix] …], created, updated].
func (u *UserRecord) Append(b []byte) []byte {
	b = mp.AppendArray(b, 5)
	b = mp.AppendString(mp.AppendString(b, u.Name), u.Hash)
	b = mp.AppendArray(b, len(u.Grants))
	for _, g := range u.Grants {
		b = mp.AppendBin(mp.AppendUint(mp.AppendArray(b, 2), uint64(g.Role)), g.Prefix)
	}
	return mp.AppendInt(mp.AppendInt(b, u.CreateMS), u.UpdateMS)
}

// DecodeUser decodes a UserRecord.
func DecodeUser(b []byte) (UserRecord, error) {
	r := mp.NewReader(b)
	var u UserRecord
	more := r.ArrayMin(5)
	u.Name, u.Hash = r.String(), r.String()
	if len(u.Hash) > userHashMax {
		r.Fail("hash too long")
	}
	n := r.Array()
	if n > auth.GrantsMax {
		r.Fail("too many grants")
	}
	for ; n > 0 && r.Err() == nil; n-- {
		extra := r.ArrayMin(2)
		g := auth.Grant{Role: auth.Role(r.Uint()), Prefix: append([]byte(nil), r.Bin()...)}
		r.Skip(extra)
		u.Grants = append(u.Grants, g)
	}
	u.CreateMS, u.UpdateMS = r.Int(), r.Int()
	r.Skip(more)
	err := r.Finish()
	if err == nil {
		err = auth.CheckName(u.Name)
	}
	if err == nil {
		err = auth.CheckGrants(u.Grants)
	}
	if err != nil {
		return UserRecord{}, fmt.Errorf("placement: user record: %w", err)
	}
	return u, nil
}
