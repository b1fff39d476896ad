package bench

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/kiloraft/kiloraft/internal/client"
)

// keySpace maps numbers to keys of the chosen shards.
type keySpace struct {
	starts [][]byte // of the shards used, extended so that the key falls within
}

// newKeySpace uses the first n of shards (0: all).
func newKeySpace(shards []client.Shard, n int) (*keySpace, error) {
	if n <= 0 || n > len(shards) {
		n = len(shards)
	}
	ks := new(keySpace)
	for _, s := range shards[:n] {
		const last = "bench~" // sorts behind all our suffixes
		if k, ok := client.KeyIn(s, last); ok {
			ks.starts = append(ks.starts, k[:len(k)-len(last)])
		}
	}
	if len(shards) == 0 {
		return nil, errors.New("the cluster lists no shards: has kiloraft cluster init ended?")
	}
	if len(ks.starts) == 0 {
		return nil, errors.New("no shard has room for keys of the benchmark")
	}
	return ks, nil
}

func (ks *keySpace) append(dst []byte, i uint64) []byte {
	n := uint64(len(ks.starts))
	dst = append(dst, ks.starts[i%n]...)
	return fmt.Appendf(dst, "bench%012d", i/n)
}

// chooser picks the number of a key below count.
type chooser interface {
	next(r *rand.Rand, count uint64) uint64
}

type uniform struct{}

func (uniform) next(r *rand.Rand, count uint64) uint64 { return r.Uint64N(count) }

// zipfian is YCSB's generator (Gray et al., "Quickly generating billion-record synthetic databases"), scrambled so that the
// popular keys lie everywhere. It is made for a fixed number of keys; keys inserted later are not drawn.
type zipfian struct {
	items                    uint64
	theta, zetan, alpha, eta float64
	latest                   bool // popular are the newest, unscrambled (YCSB-D)
}

const zipfTheta = 0.99

func newZipfian(items uint64, latest bool) *zipfian {
	z := &zipfian{items: items, theta: zipfTheta, latest: latest}
	for i := uint64(1); i <= items; i++ {
		z.zetan += 1 / math.Pow(float64(i), z.theta)
	}
	zeta2 := 1 + 1/math.Pow(2, z.theta)
	z.alpha = 1 / (1 - z.theta)
	z.eta = (1 - math.Pow(2/float64(items), 1-z.theta)) / (1 - zeta2/z.zetan)
	return z
}

// rank gives 0 for the most popular item.
func (z *zipfian) rank(r *rand.Rand) uint64 {
	u := r.Float64()
	uz := u * z.zetan
	if uz < 1 {
		return 0
	}
	if uz < 1+math.Pow(0.5, z.theta) {
		return min(1, z.items-1)
	}
	return min(uint64(float64(z.items)*math.Pow(z.eta*u-z.eta+1, z.alpha)), z.items-1)
}

func (z *zipfian) next(r *rand.Rand, count uint64) uint64 {
	k := z.rank(r)
	if z.latest {
		return count - 1 - k%count
	}
	return mix(k) % z.items
}

// mix is splitmix64's finalizer: neighbours in, strangers out.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
