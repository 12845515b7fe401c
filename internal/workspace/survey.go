package workspace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// survey gathers entries.
type survey struct {
	entries []entry
	special []string // names of sockets, fifos and devices that were left out
	warned  []string
	depth   int      // of repositories within each other
	missing []string // listed, but not there

	// Of Prepare; nil where a tree is copied as it is.
	opts *Options
	sent *Sent
	tree *Tree
	// judged says that all flags are those of now; else those that were sent hold for
	// what has not changed.
	judged bool
}

func (s *survey) warn(format string, args ...any) {
	s.warned = append(s.warned, fmt.Sprintf(format, args...))
}

// walk adds everything below dir, under the name prefix. skip, which may be nil,
// says what to leave out; rel is relative to dir and slash-separated.
func (s *survey) walk(ctx context.Context, dir, prefix string, skip func(rel string, isDir bool) bool) error {
	return s.walkDir(ctx, dir, prefix, "", skip)
}

func (s *survey) walkDir(ctx context.Context, dir, prefix, rel string, skip func(string, bool) bool) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	children, err := os.ReadDir(dir)
	if err != nil {
		return pathErr(dir, err)
	}
	// One pass over the directory, many processors over its files.
	found := make([]entry, len(children))
	kept := make([]bool, len(children))
	err = inParallel(ctx, len(children), func(i int) error {
		sub := join(rel, children[i].Name())
		if skip != nil && skip(sub, children[i].IsDir()) {
			return nil
		}
		e, ok, err := lookAt(filepath.Join(dir, children[i].Name()), join(prefix, sub))
		found[i], kept[i] = e, ok
		return err
	})
	if err != nil {
		return err
	}
	for i := range found {
		if !kept[i] {
			continue
		}
		if !s.add(found[i]) || !found[i].mode.IsDir() {
			continue
		}
		if err := s.walkDir(ctx, found[i].path, prefix, join(rel, children[i].Name()), skip); err != nil {
			return err
		}
	}
	return nil
}

// add takes an entry, unless it is of a kind that cannot be sent.
func (s *survey) add(e entry) bool {
	switch e.mode.Type() {
	case 0, fs.ModeDir, fs.ModeSymlink:
		s.entries = append(s.entries, e)
		return true
	}
	s.special = append(s.special, e.name)
	return false
}

// lookAt describes what is at path. ok is false when nothing is there (any more).
func lookAt(path, name string) (e entry, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return entry{}, false, nil
		}
		return entry{}, false, pathErr(path, err)
	}
	return entry{
		name: name, path: path, mode: fileMode(st.Mode), size: st.Size, uid: int(st.Uid), gid: int(st.Gid),
		time: time.Unix(st.Mtim.Sec, 0), mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), ino: st.Ino,
	}, true, nil
}

// fileMode turns st_mode into a FileMode; set-id bits of host files stay behind,
// because their owner does.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
		if m&unix.S_ISVTX != 0 {
			mode |= fs.ModeSticky
		}
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFREG:
	default:
		mode |= fs.ModeIrregular
	}
	return mode
}

// join joins slash-separated names, the first of which may be empty.
func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "/" + name
}

// inParallel runs fn for 0 to n-1 on all processors and returns the error of the
// lowest index that failed.
func inParallel(ctx context.Context, n int, fn func(i int) error) error {
	const chunk = 256
	workers := min(runtime.GOMAXPROCS(0), (n+chunk-1)/chunk)
	if workers <= 1 {
		for i := range n {
			if err := fn(i); err != nil {
				return err
			}
		}
		return nil
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards the rest
	next, firstBad := 0, n
	var firstErr error
	for range workers {
		wg.Go(func() {
			for {
				mu.Lock()
				from := next
				next += chunk
				stop := from >= n || firstErr != nil && firstBad < from || ctx.Err() != nil
				mu.Unlock()
				if stop {
					return
				}
				for i := from; i < min(from+chunk, n); i++ {
					if err := fn(i); err != nil {
						mu.Lock()
						if i < firstBad {
							firstBad, firstErr = i, err
						}
						mu.Unlock()
						break
					}
				}
			}
		})
	}
	wg.Wait()
	if firstErr == nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return firstErr
}
