package door

import (
	"slices"
	"testing"
)

func TestNetwork(t *testing.T) {
	if Network("[2001:db8:1:2:3::4]:5") != Network("[2001:db8:1:2:9::1]:6") || Network("[2001:db8:1:2::]:5") == Network("[2001:db8:1:3::]:5") {
		t.Error("not a /64 of IPv6")
	}
	if Network("10.0.0.1:5") != "10.0.0.1" || Network("[::ffff:10.0.0.1]:7") != "10.0.0.1" || Network("10.0.0.1:5") == Network("10.0.0.2:5") {
		t.Error("not a host of IPv4")
	}
	if Network("pipe") != "pipe" {
		t.Error("something else is changed")
	}
}

func TestIdle(t *testing.T) {
	of := func(host string, heard ...int64) (list []Held) {
		for _, h := range heard {
			list = append(list, Held{host, h})
		}
		return list
	}
	for _, c := range []struct {
		name string
		all  []Held
		want []int
	}{
		{"none", nil, []int{}},
		{"nobody silent", slices.Concat(of("a", 12), of("b", 11)), []int{}},
		{"half is not most", slices.Concat(of("a", 9), of("b", 8)), []int{1}},
		{"most, and not silent", slices.Concat(of("b", 1), of("a", 13, 12)), []int{2}},
		{"the first of the same", of("a", 5, 5, 5), []int{0}},
		{"one of a hundred and one more", slices.Concat(of("a", make([]int64, 101)...), of("b", make([]int64, 100)...)), []int{0, 1, 2}},
	} {
		if got := Idle(c.all, 10); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
