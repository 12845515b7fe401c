package fakevm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// process is one command of the guest.
type process struct {
	vm             *vm
	args           []string
	env            map[string]string
	dir            string // absolute, in the guest
	user           string
	stdin          io.Reader
	stdout, stderr io.Writer
	status         int // of the last command, $?
	term           *terminal
}

// terminal is the size of the terminal a command runs on; zero without one.
type terminal struct {
	mu         sync.Mutex // guards the rest: the host resizes while the command runs
	rows, cols uint16
}

func (t *terminal) resize(rows, cols uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows, t.cols = rows, cols
}

func (t *terminal) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fmt.Sprintf("%d %d", t.rows, t.cols)
}

func (v *vm) newProcess(e guest.Exec, in io.Reader, out, errOut io.Writer) *process {
	home := v.home()
	v.mu.Lock()
	defer v.mu.Unlock()
	p := &process{
		vm: v, args: e.Args, dir: home, user: e.User, stdin: in, stdout: out, stderr: errOut,
		term: &terminal{rows: e.Rows, cols: e.Cols}, env: map[string]string{"PATH": "/usr/bin:/bin"},
	}
	if p.user == "" {
		p.user = v.conf.User
	}
	if p.user == "" {
		p.user = "root"
	}
	p.env["USER"], p.env["HOME"] = p.user, "/home/"+p.user
	if p.user == "root" {
		p.env["HOME"] = "/root"
	}
	for _, kv := range slices.Concat(v.conf.Env, e.Env) {
		name, value, _ := strings.Cut(kv, "=")
		p.env[name] = value
	}
	if e.Workdir != "" {
		p.dir = path.Join("/", p.dir, e.Workdir)
		if path.IsAbs(e.Workdir) {
			p.dir = path.Clean(e.Workdir)
		}
	}
	return p
}

// check reports, before anything runs, a command that cannot be started.
func (p *process) check() error {
	if st, err := p.vm.root.Stat(inRoot("/", p.dir)); err != nil || !st.IsDir() {
		return errdefs.Invalid("the working directory %s does not exist in the VM", p.dir)
	}
	if len(p.args) == 0 || isShell(p.args[0]) || program(p.args[0]) != nil {
		return nil
	}
	return errdefs.NotFound("command %q was not found in the VM", p.args[0])
}

func isShell(name string) bool {
	name = path.Base(name)
	return name == "sh" || name == "bash"
}

// run runs the command to its end. It is abandoned, not waited for, when ctx ends:
// the context's cause says how it ended then.
func (p *process) run(ctx context.Context) (int, error) {
	if err := p.check(); err != nil {
		return 0, err
	}
	return p.exec(ctx, p.args), nil
}

func (p *process) exec(ctx context.Context, args []string) int {
	switch {
	case len(args) == 0 || isShell(args[0]) && len(args) == 1:
		return p.interact(ctx)
	case isShell(args[0]) && len(args) > 2 && strings.HasPrefix(args[1], "-") && strings.HasSuffix(args[1], "c"):
		return p.script(ctx, args[2])
	}
	cmd := program(args[0])
	if cmd == nil {
		fmt.Fprintf(p.stderr, "sh: 1: %s: not found\n", args[0])
		return guest.ExitNotFound
	}
	return cmd(ctx, p, args[1:])
}

// exiting ends a script from within.
type exiting int

func (exiting) Error() string { return "exit" }

// interact runs what comes on stdin, line by line.
func (p *process) interact(ctx context.Context) int {
	for lines := bufio.NewScanner(p.stdin); ctx.Err() == nil && lines.Scan(); {
		if err := p.line(ctx, lines.Text()); err != nil {
			break
		}
	}
	return p.status
}

func (p *process) script(ctx context.Context, text string) int {
	for line := range strings.Lines(text) {
		if p.line(ctx, line) != nil {
			break
		}
	}
	return p.status
}

// line runs commands joined by ";", "&&" and "||". It errors when the script is
// to end.
func (p *process) line(ctx context.Context, text string) error {
	words, err := p.split(text)
	if err != nil {
		fmt.Fprintf(p.stderr, "sh: %v\n", err)
		p.status = 2
		return err
	}
	for skip := false; len(words) > 0; {
		n := slices.IndexFunc(words, func(w word) bool { return w.operator() && w.text[0] != '>' })
		op := ";"
		cmd := words
		if n >= 0 {
			cmd, op, words = words[:n], words[n].text, words[n+1:]
		} else {
			words = nil
		}
		if !skip && len(cmd) > 0 {
			if err := p.simple(ctx, cmd); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		skip = op == "&&" && p.status != 0 || op == "||" && p.status == 0
	}
	return nil
}

// simple runs one command with its redirections.
func (p *process) simple(ctx context.Context, words []word) error {
	sub := *p // with streams of its own
	var args []string
	for i := 0; i < len(words); i++ {
		w := words[i]
		if !w.operator() {
			args = append(args, p.expand(w))
			continue
		}
		if w.text == ">&2" {
			sub.stdout = p.stderr
			continue
		}
		if i++; i == len(words) {
			return p.fail(errors.New("syntax error: no file to write to"))
		}
		flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		if w.text == ">>" {
			flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
		}
		p.vm.space()
		f, err := p.vm.root.OpenFile(inRoot(p.dir, p.expand(words[i])), flags, 0o644)
		if err != nil {
			return p.fail(err)
		}
		defer f.Close()
		sub.stdout = f
	}
	switch {
	case len(args) == 0:
		return nil
	case args[0] == "exit":
		if len(args) > 1 {
			p.status = exitStatus(args[1])
		}
		return exiting(p.status)
	case args[0] == "cd":
		p.status = p.chdir(args[1:])
		return nil
	case args[0] == "export" && len(args) > 1:
		name, value, _ := strings.Cut(args[1], "=")
		p.env[name], p.status = value, 0
		return nil
	case args[0] == "exec":
		args = args[1:]
		p.status = sub.exec(ctx, args)
		return exiting(p.status)
	}
	sub.env = maps.Clone(p.env)
	p.status = sub.exec(ctx, args)
	return nil
}

func (p *process) fail(err error) error {
	fmt.Fprintf(p.stderr, "sh: %v\n", err)
	p.status = 2
	return nil
}

func (p *process) chdir(args []string) int {
	dir := p.env["HOME"]
	if len(args) > 0 {
		dir = args[0]
	}
	to := inRoot(p.dir, dir)
	if st, err := p.vm.root.Stat(to); err != nil || !st.IsDir() {
		fmt.Fprintf(p.stderr, "sh: cd: can't cd to %s\n", dir)
		return 2
	}
	p.dir = path.Join("/", to)
	return 0
}

// word is one word of a line: literal parts, and parts in which variables count.
type word struct {
	text   string // of an operator
	pieces []piece
}

type piece struct {
	text    string
	literal bool
}

func (w word) operator() bool { return w.text != "" }

// split cuts a line into words and operators. Quotes are honoured; what else a
// shell can do is not here.
func (p *process) split(line string) ([]word, error) {
	var words []word
	var cur *word
	add := func(text string, literal bool) {
		if cur == nil {
			cur = &word{}
		}
		cur.pieces = append(cur.pieces, piece{text, literal})
	}
	end := func() {
		if cur != nil {
			words = append(words, *cur)
			cur = nil
		}
	}
	for i := 0; i < len(line); {
		switch c := line[i]; {
		case c == ' ' || c == '\t' || c == '\n':
			end()
			i++
		case c == '#' && cur == nil:
			return words, nil
		case c == '\'' || c == '"':
			n := strings.IndexByte(line[i+1:], c)
			if n < 0 {
				return nil, errors.New("syntax error: unterminated quoted string")
			}
			add(line[i+1:i+1+n], c == '\'')
			i += n + 2
		case c == '\\' && i+1 < len(line):
			add(line[i+1:i+2], true)
			i += 2
		default:
			if op := operatorAt(line[i:]); op != "" {
				end()
				words = append(words, word{text: op})
				i += len(op)
				continue
			}
			if strings.IndexByte("|&<()`", c) >= 0 {
				return nil, fmt.Errorf("syntax error: %q is not supported here", c)
			}
			n := strings.IndexAny(line[i+1:], " \t\n'\"\\;&|<>()`")
			if n < 0 {
				n = len(line) - i - 1
			}
			add(line[i:i+1+n], false)
			i += n + 1
		}
	}
	end()
	return words, nil
}

func operatorAt(s string) string {
	for _, op := range []string{"&&", "||", ">&2", ">>", ">", ";"} {
		if strings.HasPrefix(s, op) {
			return op
		}
	}
	return ""
}

// expand replaces $NAME, ${NAME} and $? where they count.
func (p *process) expand(w word) string {
	var b strings.Builder
	for _, part := range w.pieces {
		if part.literal {
			b.WriteString(part.text)
			continue
		}
		b.WriteString(os.Expand(part.text, func(name string) string {
			if name == "?" {
				return fmt.Sprint(p.status)
			}
			return p.env[name]
		}))
	}
	return b.String()
}
