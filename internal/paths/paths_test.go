package paths_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/paths"
)

func TestDefaultFollowsTheEnvironment(t *testing.T) {
	t.Setenv(paths.EnvStateDir, "/x/y z")
	l, err := paths.Default()
	if err != nil || l.State != "/x/y z" || l.Socket != "/x/y z/"+paths.SocketFile {
		t.Errorf("%+v, %v", l, err)
	}
	if l.VM("abc") != filepath.Join("/x/y z", paths.VMsDir, "abc") {
		t.Error(l.VM("abc"))
	}
}

func TestCheckSocket(t *testing.T) {
	if err := paths.CheckSocket(strings.Repeat("a", 107)); err != nil {
		t.Error(err)
	}
	err := paths.CheckSocket(strings.Repeat("a", 108))
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(errdefs.HintOf(err), paths.EnvStateDir) {
		t.Errorf("%v", err)
	}
}
