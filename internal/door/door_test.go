package door

import "testing"

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
