package sysexec

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Search returns a process that match is true of, and when it started; zero: there is
// none. match may be asked twice of a process.
func Search(match func(pid int) bool) (pid int, start uint64, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !match(pid) {
			continue
		}
		if start, ok := Identify(pid, match); ok {
			return pid, start, nil
		}
	}
	return 0, 0, nil
}

// Identify returns when process pid started, if it is another than this one and match is
// true of it. The time is read first: should the pid pass to a stranger on the way, it is
// that of the process before, and Find finds nobody.
func Identify(pid int, match func(pid int) bool) (start uint64, ok bool) {
	if pid == os.Getpid() {
		return 0, false
	}
	start, err := StartTime(pid)
	return start, err == nil && match(pid)
}

// WorksIn reports whether dir is the working directory of process pid, and that is no
// shell in which somebody looks around there. What was started detached has no terminal;
// with one, a process of another user's in a directory of ours is no such shell either.
func WorksIn(pid int, dir string) bool {
	var cwd, want, who unix.Stat_t
	proc := "/proc/" + strconv.Itoa(pid)
	err := unix.Stat(proc+"/cwd", &cwd)
	if errors.Is(err, unix.ENOENT) {
		err = statThread(proc, &cwd) // its first thread has ended
	}
	if err != nil || unix.Stat(dir, &want) != nil || cwd.Dev != want.Dev || cwd.Ino != want.Ino {
		return false
	}
	if unix.Stat(proc, &who) != nil {
		return false
	}
	st, err := readStat(pid)
	return err == nil && (!st.terminal || int(who.Uid) != os.Geteuid())
}

// statThread looks at the working directory of a thread that has one.
func statThread(proc string, cwd *unix.Stat_t) error {
	threads, err := os.ReadDir(proc + "/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		if err = unix.Stat(proc+"/task/"+t.Name()+"/cwd", cwd); err == nil {
			return nil
		}
	}
	return err
}
