package model

import (
	"errors"
	"net/netip"
	"testing"

	"banger/internal/errdefs"
)

func TestParsePort(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for text, want := range map[string]Port{
		"8080:80":               {Host: 8080, Guest: 80},
		"80":                    {Guest: 80},
		"80/tcp":                {Guest: 80},
		"8080:80/TCP":           {Host: 8080, Guest: 80},
		"192.0.2.1:8080:80":     {Addr: v4, Host: 8080, Guest: 80},
		"[2001:db8::1]:8080:80": {Addr: v6, Host: 8080, Guest: 80},
		"[::]:1:65535":          {Addr: netip.IPv6Unspecified(), Host: 1, Guest: 65535},
	} {
		got, err := ParsePort(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if got.Host == 0 {
			continue
		}
		if again, err := ParsePort(got.String()); err != nil || again != got {
			t.Errorf("%s prints as %s, which is %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{
		"", ":", "0", "x", "80:", ":80", "0:80", "80:0", "65536", "-1", "8080:80:1:2", "localhost:8080:80", "1.2.3:8080:80",
		"::1:8080:80", "[::1]", "[::1]8080:80", "[::1%lo]:8080:80", "224.0.0.1:8080:80", "80/sctp", "80/", "+80", "8080 :80",
		"[::ffff:127.0.0.1]:8080:80",
	} {
		if got, err := ParsePort(text); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if _, err := ParsePort("53:53/udp"); !errors.Is(err, errdefs.ErrUnsupported) || errdefs.HintOf(err) == "" {
		t.Errorf("udp: %v", err)
	}
}

func TestParseHostPort(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for text, want := range map[string]Port{
		"8080": {Host: 8080}, "8080:80": {Host: 8080}, "8080/tcp": {Host: 8080},
		"192.0.2.1:8080": {Addr: v4, Host: 8080}, "192.0.2.1:8080:80": {Addr: v4, Host: 8080},
		"[2001:db8::1]:8080": {Addr: v6, Host: 8080}, "[2001:db8::1]:8080:80": {Addr: v6, Host: 8080},
	} {
		if got, err := ParseHostPort(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if got, err := ParseHostPort(want.At()); err != nil || got != want {
			t.Errorf("%s: %+v, %v", want.At(), got, err)
		}
	}
	for _, text := range []string{"", "0", "x", ":80", "x:80", "70000", "[::1]", "192.0.2.1:"} {
		if got, err := ParseHostPort(text); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestPortsOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"8080:80", "8080:81", true}, {"8080:80", "8081:80", false}, {"80", "80", false},
		{"8080:80", "127.0.0.1:8080:80", true}, {"8080:80", "[::1]:8080:80", true}, {"8080:80", "127.0.0.2:8080:80", false},
		{"0.0.0.0:8080:80", "127.0.0.2:8080:80", true}, {"0.0.0.0:8080:80", "[::1]:8080:80", false}, {"0.0.0.0:8080:80", "8080:1", true},
		{"[::]:8080:80", "[2001:db8::1]:8080:80", true}, {"[::]:8080:80", "192.0.2.1:8080:80", false},
	} {
		a, err := ParsePort(c.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ParsePort(c.b)
		if err != nil {
			t.Fatal(err)
		}
		if a.Overlaps(b) != c.want || b.Overlaps(a) != c.want {
			t.Errorf("%s and %s overlap: %v and %v, want %v", c.a, c.b, a.Overlaps(b), b.Overlaps(a), c.want)
		}
	}
}

func FuzzParsePort(f *testing.F) {
	f.Add("127.0.0.1:8080:80/tcp")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePort(text)
		if err != nil || p.Host == 0 {
			return
		}
		if again, err := ParsePort(p.String()); err != nil || again != p {
			t.Errorf("%q prints as %s, which is %+v, %v", text, p, again, err)
		}
	})
}
