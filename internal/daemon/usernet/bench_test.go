package usernet

import (
	"io"
	"net"
	"testing"
	"time"
)

// One connection, one way, between a guest's stack and the host's loopback.
func BenchmarkTCP(b *testing.B) {
	const chunk = 1 << 20
	b.Run("upload", func(b *testing.B) {
		done := make(chan int64, 1)
		sink := listenTCP(b, func(c *net.TCPConn) {
			_ = c.SetDeadline(time.Time{})
			n, _ := io.Copy(onlyWriter{io.Discard}, c)
			done <- n
		})
		v, _ := attached(b, HelperConfig{Policy: allowAll})
		c := v.mustDialTCP(sink)
		_ = c.SetDeadline(time.Time{})
		buf := make([]byte, chunk)
		b.SetBytes(chunk)
		b.ResetTimer()
		for range b.N {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.CloseWrite()
		if n := <-done; n != int64(b.N)*chunk {
			b.Fatalf("%d bytes arrived", n)
		}
	})
	b.Run("download", func(b *testing.B) {
		source := listenTCP(b, func(c *net.TCPConn) {
			_ = c.SetDeadline(time.Time{})
			buf := make([]byte, chunk)
			for {
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		})
		v, _ := attached(b, HelperConfig{Policy: allowAll})
		c := v.mustDialTCP(source)
		_ = c.SetDeadline(time.Time{})
		b.SetBytes(chunk)
		b.ResetTimer()
		if _, err := io.CopyN(onlyWriter{io.Discard}, c, int64(b.N)*chunk); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = c.Close()
	})
}

// onlyWriter hides the shortcuts of io.Discard, which would read in small pieces.
type onlyWriter struct{ w io.Writer }

func (o onlyWriter) Write(p []byte) (int, error) { return o.w.Write(p) }

// A connection made, used and closed.
func BenchmarkConnect(b *testing.B) {
	echo := listenTCP(b, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	v, _ := attached(b, HelperConfig{Policy: allowAll})
	for b.Loop() {
		c, err := v.dialTCP(echo)
		if err != nil {
			b.Fatal(err)
		}
		if err := roundTrip(c, "x"); err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
}
