package vmmlog

// The parts below are tested by themselves.
var (
	Cut   = cut
	Punch = punch
)
