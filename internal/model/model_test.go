package model_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/model"
)

func TestCheckName(t *testing.T) {
	good := []string{"a", "0", "calm-otter", strings.Repeat("a", 63), "a--b"}
	bad := []string{"", "-a", "a-", "A", "a_b", "a.b", "ü", strings.Repeat("a", 64), "a b", "a\n", "../x"}
	for kind, check := range map[string]func(string) error{"VM": model.CheckName, "network": model.CheckNetworkName} {
		for _, n := range good {
			if err := check(n); err != nil {
				t.Errorf("%q: %v", n, err)
			}
		}
		for _, n := range bad {
			err := check(n)
			if !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" || !strings.HasPrefix(err.Error(), kind+" name") {
				t.Errorf("%q: %v", n, err)
			}
		}
	}
}

func TestNear(t *testing.T) {
	names := []string{"debian", "debian-trixie", "alpine", "fedora"}
	for in, want := range map[string][]string{
		"debain": {"debian"}, "alpin": {"alpine"}, "zzz": nil, "debian": {"debian"},
	} {
		if got := model.Near(in, names); !reflect.DeepEqual(got, want) {
			t.Errorf("near %q: %v, want %v", in, got, want)
		}
	}
}

func TestTransitions(t *testing.T) {
	all := []model.State{
		model.StateCreating, model.StateStarting, model.StateRunning, model.StateStopping,
		model.StateStopped, model.StateDeleting,
	}
	for _, s := range all {
		if got, want := s.CanBecome(model.StateDeleting), s != model.StateDeleting; got != want {
			t.Errorf("%s may be deleted: %v", s, got)
		}
		if s.CanBecome(model.StateCreating) {
			t.Errorf("%s can become creating", s)
		}
		if s.CanBecome(model.StateRunning) != (s == model.StateStarting || s == model.StateCreating) {
			t.Errorf("%s can become running", s)
		}
	}
	if model.StateCreating.CanBecome(model.StateStarting) {
		t.Error("what is being made can be started")
	}
	v := model.VM{Name: "x", State: model.StateStopped}
	if err := v.Transition(model.StateRunning); !errors.Is(err, errdefs.ErrFailedPrecondition) || v.State != model.StateStopped {
		t.Errorf("stopped to running: %v, now %s", err, v.State)
	}
	if err := v.Transition(model.StateStarting); err != nil || v.State != model.StateStarting {
		t.Errorf("stopped to starting: %v, now %s", err, v.State)
	}
}

func TestImageNames(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0a", 32)
	for name, both := range map[string]bool{
		"debian": true, "debian:trixie": true, "a_b-c.d": true, "alpine:Edge": false, "library/alpine": false,
		"host:5000/a/b:tag" + digest: false, "localhost/a": false, "[::1]:5000/a": false, "Example.org/a:1": false, "a" + digest: false,
		"catalog:golden": true, "catalog:golden:1.2": false, "docker-daemon:a/b:1": false, "oci:/a dir/b:c": false, "tar:/é.tar": false, "docker-archive:/a.tar:b/c:d": false,
	} {
		if err := model.CheckArtifactName("image", name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := model.CheckArtifactName("kernel", name); (err == nil) != both {
			t.Errorf("kernel %s: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "Debian", "../a", "/a", "a//b", "a/../b", "a b", "catalog:", "catalog:a/b", "catalog:A", "catalog:a:b:c", "oci:/a\nb", "tar:/\xff", "a:b:c", "a@sha256:00", "-a", "tar:/" + strings.Repeat("a", 1024),
	} {
		if model.CheckArtifactName("image", name) == nil {
			t.Errorf("%q is allowed", name)
		}
	}
}
