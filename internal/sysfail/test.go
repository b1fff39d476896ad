package sysfail

import (
	"errors"
	"syscall"
	"testing"
)

// Test is Do in a test, which it skips where the system does not let it.
func Test(t testing.TB, errno syscall.Errno, f func(), calls ...Call) {
	t.Helper()
	if err := Do(errno, f, calls...); errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}
