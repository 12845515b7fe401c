package workspace

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"banger/internal/errdefs"
)

// trimConfig rewrites the config of a repository whose .git directory moves: a work tree
// elsewhere must not be named, it is not bare, and credentials stay here.
func trimConfig(config []byte) []byte {
	var out bytes.Buffer
	section := ""
	for line := range bytes.Lines(config) {
		text := strings.ToLower(strings.TrimSpace(string(line)))
		if name, ok := strings.CutPrefix(text, "["); ok {
			section, _, _ = strings.Cut(strings.TrimLeft(name, " \t"), "]")
			section, _, _ = strings.Cut(section, " ")
			section, _, _ = strings.Cut(section, ".")
		}
		key, _, _ := strings.Cut(strings.TrimPrefix(text, "[core]"), "=")
		switch key = strings.TrimSpace(key); {
		case section == "core" && (key == "worktree" || key == "bare"):
			if strings.HasPrefix(text, "[") {
				out.WriteString("[core]\n")
			}
		case section == "credential", section == "http" && !strings.HasPrefix(text, "["):
		default:
			out.Write(userInfo.ReplaceAll(line, []byte("$1")))
		}
	}
	return out.Bytes()
}

// userInfo is what of a URL may be a password. Whom ssh is to log in as is none.
var userInfo = regexp.MustCompile(`(?i)(\b(?:https?|ftps?)://)[^/@\s"]+@`)

// keptConfig are the settings of a repository that mean the same elsewhere, as section
// and key in lower case. Whatever else is there may name programs, paths or credentials
// of the host.
var keptConfig = map[string]bool{
	"core.repositoryformatversion": true, "core.filemode": true, "core.symlinks": true, "core.ignorecase": true,
	"core.precomposeunicode": true, "core.autocrlf": true, "core.eol": true, "core.safecrlf": true,
	"core.sparsecheckout": true, "core.sparsecheckoutcone": true, "extensions.objectformat": true,
	"index.sparse": true, "index.version": true, "pull.rebase": true, "pull.ff": true, "merge.conflictstyle": true, "merge.ff": true,
	"branch.remote": true, "branch.merge": true, "branch.rebase": true, "branch.description": true,
	"remote.url": true, "remote.pushurl": true, "remote.fetch": true, "submodule.url": true, "submodule.active": true, "submodule.branch": true,
}

// config makes the config of a repository in a guest: what of the host's own means
// something there, and who commits.
func (r *repo) config(ctx context.Context) ([]byte, error) {
	out, err := git(ctx, r.top, "config", "--local", "-z", "--list")
	if err != nil {
		return nil, gitErr(r.top, err)
	}
	if bytes.Contains(bytes.ToLower(out), []byte("extensions.worktreeconfig\ntrue")) {
		// What is this work tree's own counts more, and comes later.
		own, err := git(ctx, r.top, "config", "--worktree", "-z", "--list")
		if err != nil {
			return nil, gitErr(r.top, err)
		}
		out = append(out, own...)
	}
	var b bytes.Buffer
	// Times to the second and sizes are all that is the same in the guest: with these two
	// git need not read all files to see that the index it got holds.
	b.WriteString("[core]\n\tbare = false\n\tlogallrefupdates = true\n\ttrustctime = false\n\tcheckstat = minimal\n")
	for _, kv := range splitZ(out) {
		key, value, _ := strings.Cut(kv, "\n")
		first, last := strings.IndexByte(key, '.'), strings.LastIndexByte(key, '.')
		if first < 0 || !keptConfig[strings.ToLower(key[:first]+key[last:])] || strings.ContainsRune(key, 0) {
			continue
		}
		if !strings.Contains(kv, "\n") {
			value = "true"
		}
		section := key[:first]
		if first != last {
			section += " " + configQuote(key[first+1:last])
		}
		fmt.Fprintf(&b, "[%s]\n\t%s = %s\n", section, key[last+1:], configQuote(userInfo.ReplaceAllString(value, "$1")))
	}
	for _, key := range []string{"user.name", "user.email"} {
		value, err := git(ctx, r.top, "config", "--get", key)
		if err == nil && len(value) > 0 {
			fmt.Fprintf(&b, "[user]\n\t%s = %s\n", strings.TrimPrefix(key, "user."), configQuote(strings.TrimSuffix(string(value), "\n")))
		}
	}
	return b.Bytes(), nil
}

func configQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// withoutFilters is a setting for git that keeps it from running what a repository names
// as filters of file contents. Without them it takes files that have one for changed.
func (r *repo) withoutFilters(ctx context.Context) (env []string, err error) {
	out, err := git(ctx, r.top, "config", "-z", "--name-only", "--get-regexp", `^filter\.`)
	if err != nil && !exitedWith(err, 1) {
		return nil, gitErr(r.top, err)
	}
	var drivers []string
	for _, key := range splitZ(out) {
		if first, last := strings.IndexByte(key, '.'), strings.LastIndexByte(key, '.'); first < last {
			drivers = append(drivers, key[:last])
		}
	}
	slices.Sort(drivers)
	drivers = slices.Compact(drivers)
	if len(drivers) > maxFilters {
		return nil, errdefs.Unsupported("%s names %d filters of file contents", r.top, len(drivers))
	}
	n := 0
	for _, d := range drivers {
		for _, kv := range [][2]string{{"clean", ""}, {"smudge", ""}, {"process", ""}, {"required", "false"}} {
			env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s.%s", n, d, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", n, kv[1]))
			n++
		}
	}
	return append(env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", n)), nil
}

// maxFilters bounds the environment of git.
const maxFilters = 256
