package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// program answers the driver's requests in a node process.
type program interface {
	do(req request) (response, error)
}

// serveNode is the node process: `benchpeers node PEER ID DIR ADDRESS,ADDRESS,…`. It ends with its standard input.
func serveNode(args []string) error {
	if len(args) != 4 || len(args[1]) != 1 {
		return fmt.Errorf("node %q: want PEER ID DIR ADDRESSES", args)
	}
	id, dir, addrs := int(args[1][0]-'0'), args[2], strings.Split(args[3], ",")
	var n program
	switch args[0] {
	case "kiloraft":
		n = &kiloNode{id: id, dir: dir, addrs: addrs}
	case "dragonboat":
		n = &dragonNode{id: uint64(id), dir: dir, addrs: addrs}
	case "etcd":
		n = &etcdNode{id: id, dir: dir, addrs: addrs}
	default:
		return fmt.Errorf("node of %q: want kiloraft, dragonboat or etcd", args[0])
	}
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var req request
		if err := json.Unmarshal(in.Bytes(), &req); err != nil {
			return err
		}
		stop, err := profile(req, fmt.Sprintf("%s%d", args[0], id))
		if err != nil {
			return err
		}
		res, err := n.do(req)
		stop()
		if err != nil {
			res.Error = err.Error()
		}
		if err := out.Encode(res); err != nil {
			return err
		}
	}
	return in.Err()
}

// profileDir names the environment variable with the directory for CPU profiles of each load, one per node process.
const profileDir = "BENCHPEERS_PROFILE"

// profile begins a CPU profile of a load if that is wanted, and returns what ends it.
func profile(req request, name string) (stop func(), err error) {
	dir := os.Getenv(profileDir)
	if dir == "" || req.Do != "run" {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%s-%d.pprof", name, req.Load.Name, req.Load.Inflight)))
	if err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }, pprof.StartCPUProfile(f)
}

// keyLen is the length of all keys of dragonboat and etcd; kiloraft's have the start of their shard before that.
const keyLen = 16

func appendKey(dst []byte, i uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, "bench/k/"...), i)
}

const latencyMaxMicros = 600_000_000

// closedLoop keeps inflight requests on their way, each in a goroutine of its own, until the time is over; what is in flight then is finished.
func closedLoop(inflight int, d time.Duration, one func(rng *rand.Rand) error) response {
	var (
		mu  sync.Mutex
		all = hdrhistogram.New(1, latencyMaxMicros, 3) // guarded by mu, as is res
		res response
		wg  sync.WaitGroup
	)
	start := time.Now()
	end := start.Add(d)
	for i := range inflight {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			var took []int32 // microseconds
			var failed int64
			var first error
			for now := time.Now(); now.Before(end); {
				err := one(rng)
				after := time.Now()
				if err != nil {
					failed++
					if first == nil {
						first = err
					}
				} else {
					took = append(took, int32(min(after.Sub(now).Microseconds(), latencyMaxMicros)))
				}
				now = after
			}
			mu.Lock()
			defer mu.Unlock()
			for _, us := range took {
				_ = all.RecordValue(max(1, int64(us))) // in range by construction
			}
			res.Ops += int64(len(took))
			res.Errors += failed
			if first != nil && res.FirstError == "" {
				res.FirstError = first.Error()
			}
		})
	}
	wg.Wait()
	res.Seconds = time.Since(start).Seconds()
	res.Latency = all.Export()
	return res
}

// inParallel runs one for all numbers, at most width at a time, and returns an error if there was any.
func inParallel(numbers []uint64, width int, one func(n uint64) error) error {
	errs := make([]error, width)
	var wg sync.WaitGroup
	for part := range width {
		wg.Go(func() {
			for i := part; i < len(numbers) && errs[part] == nil; i += width {
				errs[part] = one(numbers[i])
			}
		})
	}
	wg.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return errs[i]
	}
	return nil
}
