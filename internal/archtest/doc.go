// Package archtest holds no code but tests, of the project itself: which package
// may import which, what may be called where, and that the documents name what
// the code has. A rule that a test can hold is not left to a reviewer.
package archtest
