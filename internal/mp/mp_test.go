package mp

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
)

var edges = []int64{0, 1, 31, 32, 127, 128, 255, 256, 65535, 65536, math.MaxInt32, math.MaxUint32, math.MaxUint32 + 1, math.MaxInt64,
	-1, -32, -33, -128, -129, -32768, -32769, math.MinInt32, math.MinInt32 - 1, math.MinInt64}

func TestIntegersMatchLibrary(t *testing.T) {
	for _, v := range edges {
		b := AppendInt(nil, v)
		var got int64
		if err := msgpack.Unmarshal(b, &got); err != nil || got != v {
			t.Fatalf("library reads %d as %d, %v", v, got, err)
		}
		lib, _ := msgpack.Marshal(v)
		for _, enc := range [][]byte{b, lib} {
			r := NewReader(enc)
			if x := r.Int(); x != v || r.Finish() != nil {
				t.Fatalf("read %d as %d, %v", v, x, r.Err())
			}
		}
		if v >= 0 {
			r := NewReader(lib)
			if x := r.Uint(); x != uint64(v) || r.Finish() != nil {
				t.Fatalf("read %d as %d, %v", v, x, r.Err())
			}
		}
	}
}

func TestBytesAndArraysMatchLibrary(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536} {
		v := bytes.Repeat([]byte{7}, n)
		lib, _ := msgpack.Marshal(v)
		if own := AppendBin(nil, v); !bytes.Equal(own, lib) {
			t.Fatalf("bin of %d differs from the library's", n)
		}
		s := strings.Repeat("x", n)
		lib, _ = msgpack.Marshal(s)
		if own := AppendString(nil, s); !bytes.Equal(own, lib) {
			t.Fatalf("str of %d differs from the library's", n)
		}
		a := make([]bool, n)
		lib, _ = msgpack.Marshal(a)
		own := AppendArray(nil, n)
		for range n {
			own = AppendBool(own, false)
		}
		if !bytes.Equal(own, lib) {
			t.Fatalf("array of %d differs from the library's", n)
		}
		r := NewReader(own)
		if got := r.Array(); got != n {
			t.Fatalf("array of %d read as %d", n, got)
		}
	}
}

func TestLengthBombs(t *testing.T) {
	for _, b := range [][]byte{{0xc6, 0xff, 0xff, 0xff, 0xff}, {0xdd, 0xff, 0xff, 0xff, 0xff}, {0xdb, 0x7f, 0xff, 0xff, 0xff, 1}, {0xc5, 1}, {0x9f}, {}} {
		r := NewReader(b)
		r.Array()
		r2 := NewReader(b)
		r2.Bin()
		if !errors.Is(r.Err(), ErrMalformed) || !errors.Is(r2.Err(), ErrMalformed) {
			t.Fatalf("% x: %v, %v", b, r.Err(), r2.Err())
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte{0x93, 1, 0xc4, 1, 2, 0xc0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(b)
		for n := r.Array(); n > 0 && r.Err() == nil; n-- {
			r.Skip(1)
		}
		r.Reset(b)
		r.Uint()
		r.Int()
		r.Bool()
		r.Bin()
		_ = r.String()
	})
}
