package model

import (
	"crypto/rand"
	"encoding/hex"
)

// NewID returns 12 random lower-case hex digits.
func NewID() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
