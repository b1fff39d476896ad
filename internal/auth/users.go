package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"sync/atomic"
	"time"
)

// Root is the administrator that every cluster has. Nothing can take its rights; it comes in with a client certificate of that
// name, or with a password once it was given one.
const Root = "root"

// UsersMax bounds the users of a cluster: every node holds all of them.
const UsersMax = 10_000

// User is what the cluster knows of a user.
type User struct {
	Name   string
	Hash   string // of the password, in PHC form; empty: certificates only
	Grants []Grant
}

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._@-]{0,63}$`)

// CheckName refuses names that users cannot have.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("user name %.80q: want 1 to 64 letters, digits and . _ @ -, beginning with a letter or digit", name)
	}
	return nil
}

var (
	// ErrWrong: there is no such user, or the password is not the right one.
	ErrWrong = errors.New("wrong user name or password")
	// ErrNotReady: this node cannot check credentials now; others may.
	ErrNotReady = errors.New("this node does not know the users now")
)

// How somebody has shown who they are.
const (
	ByNothing     = "nothing"
	ByPassword    = "password"
	ByCertificate = "certificate"
	ByNode        = "node certificate"
)

// Identity is who is at the other end of a connection. It stays the same while the connection lasts; what it may do can change.
type Identity struct {
	Name string
	How  string
	acc  *account
}

// Access returns what the identity may do now, never nil.
func (id *Identity) Access() *Access { return id.acc.access.Load() }

// String names the identity for logs.
func (id *Identity) String() string { return id.Name }

// account is a user as far as one kind of credential is concerned.
type account struct {
	access atomic.Pointer[Access]
	// right is a keyed hash of the password that was right last.
	right atomic.Pointer[[sha256.Size]byte]
}

func newAccount(a *Access) *account {
	acc := &account{}
	acc.access.Store(a)
	return acc
}

var (
	nobody  = newAccount(nothing)
	trusted = newAccount(everything)
	// admin is what root may do.
	admin = Compile([]Grant{{Role: RoleAdmin}})
)

// Nobody is the identity of those who have shown nothing yet.
func Nobody() *Identity { return &Identity{Name: "nobody", How: ByNothing, acc: nobody} }

// Node is the identity of another node of the cluster.
func Node(name string) *Identity { return &Identity{Name: name, How: ByNode, acc: trusted} }

// Anyone is the identity of everybody where security is off.
func Anyone() *Identity { return &Identity{Name: "anyone", How: ByNothing, acc: trusted} }

// user is a User with its accounts.
type user struct {
	rec               User
	password, byCerts *account
}

// Users is what a node knows of the users. Its methods may be called from any goroutine.
type Users struct {
	staleMax time.Duration
	now      func() time.Time
	key      [32]byte // of this process, for account.right
	hasher   *hasher
	throttle *throttle
	decoy    stored // is checked for users that do not exist
	root     *account

	mu     sync.RWMutex
	byName map[string]*user
	read   time.Time // when Update was called last; zero: never
	stale  bool      // the rights have run out
}

// NewUsers returns Users that know root's certificate only, until the first Update. What an Update said holds for staleMax.
func NewUsers(staleMax time.Duration, now func() time.Time) *Users {
	u := &Users{staleMax: staleMax, now: now, hasher: newHasher(), throttle: newThrottle(), root: newAccount(admin), byName: map[string]*user{}}
	_, _ = rand.Read(u.key[:])
	u.decoy = stored{memory: argonMemoryKiB, time: argonTime, threads: argonThreads, salt: u.key[:argonSalt], key: make([]byte, argonKey)}
	return u
}

// Update takes the users as they are now.
func (u *Users) Update(list []User) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.read, u.stale = u.now(), false
	gone := u.byName
	u.byName = make(map[string]*user, len(list))
	for _, rec := range list {
		a := Compile(rec.Grants)
		if rec.Name == Root {
			a = admin
		}
		old := gone[rec.Name]
		delete(gone, rec.Name)
		if old == nil {
			u.byName[rec.Name] = &user{rec: rec, password: newAccount(a), byCerts: newAccount(a)}
			continue
		}
		if old.rec.Hash != rec.Hash { // whoever came in with the old password is out
			old.password.access.Store(nothing)
			old.password = newAccount(a)
		}
		old.rec = rec
		old.password.access.Store(a)
		old.byCerts.access.Store(a)
		u.byName[rec.Name] = old
	}
	for _, old := range gone {
		old.password.access.Store(nothing)
		old.byCerts.access.Store(nothing)
	}
}

// Len returns how many users there are.
func (u *Users) Len() int {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return len(u.byName)
}

// Expire takes all rights but root's if the last Update is too long ago. The next one gives them back.
func (u *Users) Expire() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stale || u.read.IsZero() || u.now().Sub(u.read) < u.staleMax {
		return
	}
	u.stale = true
	for _, x := range u.byName {
		x.password.access.Store(nothing)
		x.byCerts.access.Store(nothing)
	}
}

// find returns a user's record and the account for a kind of credential; nil if there is no such user.
func (u *Users) find(name string, byCertificate bool) (User, *account, error) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	if u.read.IsZero() || u.stale {
		return User{}, nil, ErrNotReady
	}
	x := u.byName[name]
	switch {
	case x == nil:
		return User{}, nil, nil
	case byCertificate:
		return x.rec, x.byCerts, nil
	}
	return x.rec, x.password, nil
}

// Certificate returns the identity of a user whose certificate was verified.
func (u *Users) Certificate(name string) (*Identity, error) {
	if name == Root {
		return &Identity{Name: Root, How: ByCertificate, acc: u.root}, nil
	}
	_, acc, err := u.find(name, true)
	if err != nil {
		return nil, err
	}
	if acc == nil {
		return nil, fmt.Errorf("%w: the certificate is of user %.80q, who does not exist", ErrWrong, name)
	}
	return &Identity{Name: name, How: ByCertificate, acc: acc}, nil
}

// Password returns the identity of a user with this password, who calls from an address. It may wait for others to be checked.
func (u *Users) Password(ctx context.Context, name string, password []byte, from string) (*Identity, error) {
	if err := u.throttle.enter(u.now(), name, from); err != nil {
		return nil, err
	}
	rec, acc, err := u.find(name, false)
	if err != nil {
		return nil, err
	}
	ok := false
	if len(password) <= PasswordBytesMax {
		if ok, err = u.check(ctx, rec.Hash, acc, password); err != nil {
			return nil, err
		}
	}
	if !ok {
		u.throttle.wrong(u.now(), name, from)
		return nil, ErrWrong
	}
	u.throttle.right(name, from)
	return &Identity{Name: name, How: ByPassword, acc: acc}, nil
}

func (u *Users) check(ctx context.Context, hash string, acc *account, password []byte) (ok bool, err error) {
	var mac [sha256.Size]byte
	h := hmac.New(sha256.New, u.key[:])
	h.Write(password)
	h.Sum(mac[:0])
	if acc != nil {
		if right := acc.right.Load(); right != nil && subtle.ConstantTimeCompare(right[:], mac[:]) == 1 {
			return true, nil
		}
	}
	known := acc != nil && hash != ""
	want := u.decoy
	if known {
		if want, err = parseHash(hash); err != nil {
			return false, fmt.Errorf("the stored password of the user cannot be read: %w", err)
		}
	}
	err = u.hasher.do(ctx, func() { ok = want.matches(password) && known })
	if ok {
		acc.right.Store(&mac)
	}
	return ok, err
}

// Hash returns the stored form of a new password.
func (u *Users) Hash(ctx context.Context, password []byte) (s string, err error) {
	if err := CheckPassword(password); err != nil {
		return "", err
	}
	err = u.hasher.do(ctx, func() { s = hash(password) })
	return s, err
}
