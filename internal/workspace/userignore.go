package workspace

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// maxUserIgnore bounds the rules that go along with a request, in bytes.
const maxUserIgnore = 64 << 10

// UserIgnore are the rules of what this user never wants in a repository, which git keeps
// outside of it.
func UserIgnore(ctx context.Context) string {
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	file := filepath.Join(home, ".config", "git", "ignore")
	if base := os.Getenv("XDG_CONFIG_HOME"); base != "" {
		file = filepath.Join(base, "git", "ignore")
	}
	// The root directory is in no repository, whose config would count as well.
	if out, err := git(ctx, "/", "config", "--type=path", "--get", "core.excludesFile"); err == nil && len(out) > 0 {
		file = strings.TrimSuffix(string(out), "\n")
	}
	text, err := os.ReadFile(file)
	if err != nil || len(text) > maxUserIgnore {
		return ""
	}
	return string(text)
}
