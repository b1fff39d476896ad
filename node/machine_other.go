//go:build !linux && !darwin

package node

import "time"

func diskSpace(string) (free, size uint64) { return 0, 0 }

func cpuTime() time.Duration { return 0 }
