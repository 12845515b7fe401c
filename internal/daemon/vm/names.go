package vm

import (
	"crypto/rand"
	"fmt"
	"math/big"

	"banger/internal/model"
)

var adjectives = []string{
	"amber", "bold", "brave", "bright", "brisk", "calm", "clever", "cosy", "crisp", "curious",
	"daring", "deft", "eager", "early", "fair", "fancy", "fleet", "fond", "fresh", "gentle",
	"glad", "golden", "grand", "happy", "hardy", "honest", "humble", "jolly", "keen", "kind",
	"lively", "lucky", "merry", "mild", "neat", "nimble", "noble", "patient", "plucky", "polite",
	"proud", "quick", "quiet", "rapid", "ready", "sage", "sharp", "shiny", "silent", "sleek",
	"smart", "snug", "solid", "spry", "steady", "sunny", "swift", "tidy", "trusty", "vivid",
	"warm", "wise", "witty", "young",
}

var animals = []string{
	"badger", "bear", "beaver", "bison", "bobcat", "camel", "cat", "cod", "condor", "crane",
	"crow", "deer", "dingo", "dolphin", "eagle", "egret", "elk", "falcon", "ferret", "finch",
	"fox", "gecko", "goose", "hare", "hawk", "heron", "ibex", "jackal", "jay", "kestrel",
	"koala", "lark", "lemur", "lion", "llama", "lynx", "marten", "mole", "moose", "newt",
	"ocelot", "orca", "otter", "owl", "panda", "pike", "puffin", "quail", "raven", "robin",
	"salmon", "seal", "shrew", "sloth", "stork", "swan", "tapir", "tern", "tiger", "toad",
	"trout", "viper", "walrus", "wren",
}

// friendlyName makes up a name that is not taken.
func friendlyName(taken map[string]bool) string {
	for range 64 {
		if name := pick(adjectives) + "-" + pick(animals); !taken[name] {
			return name
		}
	}
	for {
		if name := fmt.Sprintf("%s-%s-%s", pick(adjectives), pick(animals), model.NewID()[:4]); !taken[name] {
			return name
		}
	}
}

func pick(words []string) string {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	if err != nil {
		return words[0] // the system's random source never fails on Linux
	}
	return words[n.Int64()]
}
