package main

import (
	"os"
	"testing"
)

func TestSharedPagesCountOnce(t *testing.T) {
	once, err := residentMB(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	own, err := ownMemory("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	twice, err := residentMB(os.Getpid(), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// What is the process's own counts twice, the pages of its program do not.
	files := once - float64(own)/1e6
	if files < 0.1 || twice > 2*once-files/2 {
		t.Errorf("once %.1f MB, %.1f of it of files; twice %.1f MB", once, files, twice)
	}
}
