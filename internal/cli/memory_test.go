package cli

import (
	"errors"
	"io"
	"log/slog"
	"runtime/debug"
	"testing"
)

// What an operator sets goes before GOMEMLIMIT, and that before a share of what there is.
func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	const there = 64 << 30
	for name, c := range map[string]struct {
		set        int64
		gomemlimit string
		err        error
		want       int64
	}{
		"set":          {set: 3 << 30, gomemlimit: "1GiB", want: 3 << 30},
		"GOMEMLIMIT":   {gomemlimit: "1GiB", want: 5 << 30}, // as the runtime has read it
		"share":        {want: there / 4 * 3},
		"nobody knows": {err: errors.New("not told"), want: 5 << 30},
	} {
		debug.SetMemoryLimit(5 << 30)
		limitMemory(log, c.set, c.gomemlimit, func() (uint64, error) { return there, c.err })
		if got := debug.SetMemoryLimit(-1); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if n, err := memoryThere(); err != nil || n < 64<<20 {
		t.Errorf("this machine has %d bytes of memory (%v)", n, err)
	}
}
