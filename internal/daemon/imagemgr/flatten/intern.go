package flatten

import (
	"hash/maphash"
	"strings"
)

// interner keeps strings in a few large pieces of memory instead of one for each, and
// those that come again within a while once. A map of all would cost more than it saves.
type interner struct {
	seed   maphash.Seed
	recent [1 << 11]string
	block  strings.Builder
	budget *budget
}

const internBlock = 32 << 10

func newInterner(b *budget) *interner { return &interner{seed: maphash.MakeSeed(), budget: b} }

// keep returns a copy of s, which does not hold on to what s is part of.
func (in *interner) keep(s string) (string, error) {
	slot := &in.recent[maphash.String(in.seed, s)%uint64(len(in.recent))]
	if *slot == s {
		return *slot, nil
	}
	if err := in.budget.meta(len(s)); err != nil {
		return "", err
	}
	if len(s) > internBlock/16 {
		*slot = strings.Clone(s)
		return *slot, nil
	}
	if in.block.Cap()-in.block.Len() < len(s) {
		// Reset lets go of the old block, which the strings in it keep.
		in.block.Reset()
		in.block.Grow(internBlock)
	}
	// Within its capacity a builder's memory neither moves nor changes.
	at := in.block.Len()
	in.block.WriteString(s)
	*slot = in.block.String()[at:]
	return *slot, nil
}
