package model_test

import (
	"errors"
	"slices"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// What docker run would run; "-" is a flag that was not given.
func TestCommand(t *testing.T) {
	type list = []string
	for _, c := range []struct {
		entry, cmd list
		flag       string
		args       list
		want       list
	}{
		{nil, nil, "-", nil, nil},
		{nil, nil, "-", list{"ls", "-l"}, list{"ls", "-l"}},
		{nil, list{"serve"}, "-", nil, list{"serve"}},
		{nil, list{"serve"}, "-", list{"ls"}, list{"ls"}},
		{list{"entry", "-x"}, nil, "-", nil, list{"entry", "-x"}},
		{list{"entry", "-x"}, list{"serve", "--all"}, "-", nil, list{"entry", "-x", "serve", "--all"}},
		{list{"entry", "-x"}, list{"serve"}, "-", list{"ls", "-l"}, list{"entry", "-x", "ls", "-l"}},
		{list{"entry", "-x"}, list{"serve"}, "prog", nil, list{"prog"}},
		{list{"entry", "-x"}, list{"serve"}, "prog", list{"a", "b"}, list{"prog", "a", "b"}},
		{nil, list{"serve"}, "prog", nil, list{"prog"}},
		{list{"entry"}, list{"serve"}, "", nil, nil},
		{list{"entry"}, list{"serve"}, "", list{"ls"}, list{"ls"}},
		{list{""}, list{"serve"}, "-", nil, list{"serve"}},
		{list{""}, nil, "-", nil, nil},
		{list{"", "x"}, nil, "-", nil, list{"", "x"}}, // refused where it is started
		// The machine's init runs already, or there is none.
		{nil, list{"/sbin/init"}, "-", nil, nil},
		{list{"/lib/systemd/systemd"}, list{"--log-target=console"}, "-", nil, nil},
		{list{"/sbin/init"}, nil, "-", list{"--help"}, list{"/sbin/init", "--help"}},
		{nil, nil, "/sbin/init", nil, list{"/sbin/init"}},
	} {
		var flag *string
		if c.flag != "-" {
			flag = &c.flag
		}
		image := model.ImageConfig{Entrypoint: c.entry, Cmd: c.cmd}
		if got := image.Command(flag, c.args); !slices.Equal(got, c.want) || (got == nil) != (c.want == nil) {
			t.Errorf("%q %q --entrypoint %q %q: %q, want %q", c.entry, c.cmd, c.flag, c.args, got, c.want)
		}
		if !slices.Equal(image.Entrypoint, c.entry) || !slices.Equal(image.Cmd, c.cmd) {
			t.Errorf("the image was changed: %+v", image)
		}
	}
}

func TestExposed(t *testing.T) {
	c := model.ImageConfig{ExposedPorts: []string{"443/tcp", "80", "53/udp", "53/TCP", "80/tcp", "9/sctp"}}
	tcp, others, err := c.Exposed()
	if err != nil || !slices.Equal(tcp, []uint16{53, 80, 443}) || !slices.Equal(others, []string{"53/udp", "9/sctp"}) {
		t.Errorf("%v %v %v", tcp, others, err)
	}
	for _, bad := range []string{"", "0/tcp", "65536", "http", "-1/tcp", "80-90/tcp", "/udp", " 80"} {
		c := model.ImageConfig{ExposedPorts: []string{"80/tcp", bad}}
		if _, _, err := c.Exposed(); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
