package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// lockWait is how long to wait for a holder that is just ending: a killed process of some size needs a moment to be gone.
const lockWait = time.Second

// Lock takes the data directory for this process; offline tools take it too. The file names its holder for the message.
func Lock(dataDir string) (release func(), err error) {
	path := filepath.Join(dataDir, lockFile)
	l := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR))
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	ok, err := l.TryLockContext(ctx, 10*time.Millisecond)
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("node: lock data directory %s: %w", dataDir, err)
	}
	if !ok {
		who, _ := os.ReadFile(path)
		text := strings.TrimSpace(string(who))
		if text == "" {
			text = "another process"
		}
		return nil, fmt.Errorf("%w: %s is held by %s", ErrDirInUse, dataDir, text)
	}
	host, _ := os.Hostname()
	who := fmt.Sprintf("pid %d on %s (%s)\n", os.Getpid(), host, filepath.Base(os.Args[0]))
	if err := os.WriteFile(path, []byte(who), 0o600); err != nil {
		_ = l.Unlock()
		return nil, fmt.Errorf("node: lock data directory %s: %w", dataDir, err)
	}
	return func() { _ = l.Unlock() }, nil
}
