package recovery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"testing"
)

// FuzzSalvage reads anything as a salvage file: entries come out only as they were written, and an end that fits them.
func FuzzSalvage(f *testing.F) {
	var file bytes.Buffer
	line := func(v any) {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		file.Write(append(b, '\n'))
	}
	line(SalvageHeader{1, "plan", "cluster", 3})
	line(SalvagedEntry{2, 3, 4, 5, 1, []byte("payload")})
	n := uint64(1)
	line(SalvageEnd{&n, crc32.Checksum(file.Bytes(), castagnoli)})
	f.Add(file.Bytes())
	if err := ReadSalvage(bytes.NewReader(file.Bytes()), func(*SalvageHeader, *SalvagedEntry) error { return nil }); err != nil {
		f.Fatal("the seed is not a salvage file: ", err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		seen := 0
		err := ReadSalvage(bytes.NewReader(b), func(h *SalvageHeader, e *SalvagedEntry) error {
			if h.Salvage != 1 {
				t.Fatalf("an entry below %+v", h)
			}
			seen++
			return nil
		})
		if err == nil && seen > bytes.Count(b, []byte("\n")) {
			t.Fatalf("%d entries in %q", seen, b)
		}
	})
}

// FuzzPlan reads anything as the files that an operator carries from node to node.
func FuzzPlan(f *testing.F) {
	p, err := json.Marshal(&Plan{Format: 1, ID: "x", Shards: []ShardPlan{{Shard: 2}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Fuzz(func(t *testing.T, b []byte) {
		var p, again Plan
		if json.Unmarshal(b, &p) == nil {
			enc, err := json.Marshal(&p)
			if err == nil {
				err = json.Unmarshal(enc, &again)
			}
			if enc2, err2 := json.Marshal(&again); err != nil || err2 != nil || !bytes.Equal(enc, enc2) {
				t.Fatalf("%s and %s: %v, %v", enc, enc2, err, err2)
			}
		}
		var k Key
		if err := k.UnmarshalText(b); err == nil {
			text, err := k.MarshalText()
			var same Key
			if err != nil || same.UnmarshalText(text) != nil || fmt.Sprintf("%q", same) != fmt.Sprintf("%q", k) {
				t.Fatalf("%q is written as %s, and read as %q", k, text, same)
			}
		}
	})
}
