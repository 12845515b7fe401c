// Package sftpd is the SFTP server of the agent: the same program, started once for each
// user who wants one, with that user's ids. The kernel decides what it may do.
package sftpd

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pkg/sftp"
)

// Name is argv[0] by which the agent's program knows that it is to be this server.
const Name = "banger-sftp"

// Main serves one client on stdin and stdout, to its end, and returns the exit code.
// Relative paths start at the working directory.
func Main(stderr io.Writer) int {
	if err := serve(stdio{os.Stdin, os.Stdout}); err != nil {
		fmt.Fprintln(stderr, Name+":", err)
		return 1
	}
	return 0
}

func serve(conn io.ReadWriteCloser) error {
	// Told of a directory, the server would make the targets of links absolute.
	server, err := sftp.NewServer(conn, sftp.WithAllocator())
	if err != nil {
		return err
	}
	defer server.Close()
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// stdio is both of a process's streams as one.
type stdio struct {
	io.Reader
	io.WriteCloser
}
