package state_test

import (
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// small makes files small and disks roomy.
func small(opt state.Options) state.Options {
	opt.GrowBytes = 256 << 10
	opt.ReserveBytes = 1
	return opt
}

func TestBolt(t *testing.T) {
	storetest.TestState(t, func(t testing.TB) storetest.OpenState {
		path := filepath.Join(t.TempDir(), "state")
		return func(t testing.TB, opt state.Options) state.Store {
			t.Helper()
			s, err := state.Open(path, small(opt))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	})
}

func TestMem(t *testing.T) {
	storetest.TestState(t, func(testing.TB) storetest.OpenState {
		var db *state.DB
		return func(_ testing.TB, opt state.Options) state.Store {
			if db == nil {
				db = state.NewMem(opt)
			} else {
				db = db.Clone(opt)
			}
			return db
		}
	})
}
