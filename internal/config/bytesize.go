package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ByteSize is a number of bytes that people write with a unit: 64MiB, 1.5GB, 4096.
type ByteSize int64

var byteUnits = []struct {
	name string
	size float64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1}, {"", 1},
}

// ParseByteSize reads "64MiB", "64 MiB", "10MB" or "4096".
func ParseByteSize(s string) (ByteSize, error) {
	s = strings.TrimSpace(s)
	for _, u := range byteUnits {
		num, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
		if err != nil || math.IsNaN(f) || f < 0 || f*u.size >= math.MaxInt64 {
			break
		}
		return ByteSize(f * u.size), nil
	}
	return 0, fmt.Errorf("%q is no size: write it as 4096, 64KiB, 64MiB, 2GiB", s)
}

// String uses the largest binary unit that divides the size.
func (b ByteSize) String() string {
	for _, u := range byteUnits[:4] {
		if b != 0 && int64(b)%int64(u.size) == 0 {
			return strconv.FormatInt(int64(b)/int64(u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// Set makes ByteSize a pflag.Value.
func (b *ByteSize) Set(s string) error {
	v, err := ParseByteSize(s)
	if err == nil {
		*b = v
	}
	return err
}

// Type makes ByteSize a pflag.Value.
func (b *ByteSize) Type() string { return "size" }
