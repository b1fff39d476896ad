package placement

import (
	"reflect"
	"testing"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/mp"
)

func TestUserRecord(t *testing.T) {
	u := UserRecord{User: auth.User{Name: "ann", Hash: "$x", Grants: []auth.Grant{{Role: auth.RoleRead, Prefix: []byte("a")}, {Role: auth.RoleWrite, Prefix: []byte("b")}}},
		CreateMS: 1, UpdateMS: 2}
	b := u.Append(nil)
	got, err := DecodeUser(b)
	if err != nil || !reflect.DeepEqual(got, u) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range b {
		if _, err := DecodeUser(b[:i]); err == nil {
			t.Fatalf("%d of %d bytes are enough", i, len(b))
		}
	}
	later := append(append([]byte{0x96}, b[1:]...), mp.AppendUint(nil, 7)...) // a field of a later version
	if got, err := DecodeUser(later); err != nil || !reflect.DeepEqual(got, u) {
		t.Fatalf("a later record: %+v, %v", got, err)
	}
	u.Grants[0].Role = 9
	if _, err := DecodeUser(u.Append(nil)); err == nil {
		t.Error("a role that does not exist")
	}
	u.Grants, u.Name = nil, "a b"
	if _, err := DecodeUser(u.Append(nil)); err == nil {
		t.Error("a name that nobody can have")
	}
}
