package ext4

// Times have 34 bits of seconds, which begin in 1901, and 30 of nanoseconds.
const (
	minTime = -1 << 31
	maxTime = 1<<34 - 1<<31 - 1 // in 2446

	// Between these two, in 2310 and 2378, e2fsck takes a time for one before 1970 that
	// an old kernel has written wrongly, and "repairs" it.
	doubtedFrom = 3<<32 - 1<<31
	doubtedTo   = 3 << 32
)

// encode returns the two fields of a time. As in the kernel, what is out of range becomes
// the end of the range. So does what e2fsck would not leave alone.
func (t Time) encode() (sec, extra uint32) {
	switch {
	case t.Sec < minTime:
		t = Time{Sec: minTime}
	case t.Sec > maxTime:
		t = Time{Sec: maxTime}
	case t.Sec >= doubtedFrom && t.Sec < doubtedTo:
		t = Time{Sec: doubtedFrom - 1}
	}
	epoch := uint32((t.Sec-int64(int32(t.Sec)))>>32) & 3
	return uint32(t.Sec), t.Nsec<<2 | epoch
}

// decode is the reverse of encode. It fails if there are too many nanoseconds.
func decode(sec, extra uint32) (Time, bool) {
	t := Time{int64(int32(sec)) + int64(extra&3)<<32, extra >> 2}
	return t, t.Nsec < 1e9
}
