package raftlog_test

import (
	"testing"

	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/storetest"
	"github.com/kiloraft/kiloraft/store/vfs"
)

func opener(fs vfs.FS, dir string) storetest.OpenLog {
	return func(t testing.TB, opt raftlog.Options) (*raftlog.Log, *raftlog.Recovery) {
		t.Helper()
		l, rec, err := raftlog.Open(fs, dir, opt)
		if err != nil {
			t.Fatal(err)
		}
		return l, rec
	}
}

func TestConformance(t *testing.T) {
	t.Run("OS", func(t *testing.T) {
		storetest.TestLog(t, func(t testing.TB) storetest.OpenLog { return opener(vfs.OS(), t.TempDir()) })
	})
	t.Run("Mem", func(t *testing.T) {
		storetest.TestLog(t, func(testing.TB) storetest.OpenLog { return opener(vfs.NewMem(), "log") })
	})
}
