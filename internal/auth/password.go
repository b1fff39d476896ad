package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/argon2"
)

// The parameters of new hashes: those that OWASP recommends for argon2id. A check takes as much memory, in KiB.
const (
	argonMemoryKiB = 19 * 1024
	argonTime      = 2
	argonThreads   = 1
	argonSalt      = 16
	argonKey       = 32
)

// Bounds of a password, in bytes.
const (
	PasswordBytesMin = 8
	PasswordBytesMax = 256
)

// ErrBusy: too many passwords are being checked; try again.
var ErrBusy = errors.New("too many passwords are being checked: try again")

// CheckPassword refuses passwords that are no use.
func CheckPassword(p []byte) error {
	if len(p) < PasswordBytesMin || len(p) > PasswordBytesMax {
		return fmt.Errorf("a password has %d to %d bytes, not %d", PasswordBytesMin, PasswordBytesMax, len(p))
	}
	return nil
}

// hasher bounds the hashes that are computed at a time, and those that wait for it.
type hasher struct {
	slots   chan struct{}
	waiting atomic.Int64
}

// hashersWaitingMax bounds how many wait.
const hashersWaitingMax = 64

func newHasher() *hasher { return &hasher{slots: make(chan struct{}, max(1, runtime.NumCPU()/4))} }

func (h *hasher) do(ctx context.Context, f func()) error {
	if h.waiting.Add(1) > hashersWaitingMax {
		h.waiting.Add(-1)
		return ErrBusy
	}
	defer h.waiting.Add(-1)
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return ErrBusy
	}
	defer func() { <-h.slots }()
	f()
	return nil
}

// hash computes the stored form of a password: $argon2id$v=19$m=…,t=…,p=…$salt$hash.
func hash(password []byte) string {
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt)
	key := argon2.IDKey(password, salt, argonTime, argonMemoryKiB, argonThreads, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemoryKiB, argonTime, argonThreads,
		b64.EncodeToString(salt), b64.EncodeToString(key))
}

// stored is a hash that was parsed. What a record asks for is bounded: it must not take a node's memory or time.
type stored struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func parseHash(s string) (h stored, err error) {
	parts := strings.Split(s, "$")
	var version int
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return h, errors.New("not an argon2id hash")
	}
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return h, fmt.Errorf("argon2 version %q is not known", parts[2])
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.threads); err != nil {
		return h, fmt.Errorf("argon2 parameters %q: %w", parts[3], err)
	}
	if h.memory < 8 || h.memory > 256*1024 || h.time < 1 || h.time > 16 || h.threads < 1 || h.threads > 16 {
		return h, fmt.Errorf("argon2 parameters %q are out of bounds", parts[3])
	}
	if h.salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil {
		return h, fmt.Errorf("argon2 salt: %w", err)
	}
	if h.key, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(h.key) < 16 || len(h.key) > 64 {
		return h, errors.New("argon2 hash of a strange length")
	}
	return h, nil
}

func (h *stored) matches(password []byte) bool {
	key := argon2.IDKey(password, h.salt, h.time, h.memory, h.threads, uint32(len(h.key)))
	return subtle.ConstantTimeCompare(key, h.key) == 1
}
