// Package version says which build this is. All three programs carry the same
// tuple, stamped by the linker:
//
//	-ldflags "-X banger/internal/version.Version=v1.2.3 -X banger/internal/version.Commit=… -X banger/internal/version.Date=…"
//
// A build without the stamp falls back to what the go command recorded.
package version

import "runtime/debug"

// Stamped by the linker; use Get.
var (
	Version string
	Commit  string
	Date    string
)

// Info describes a build.
type Info struct {
	Version string `json:"version"` // "dev" when unknown
	Commit  string `json:"commit"`  // full hash; empty when unknown
	Date    string `json:"date"`    // RFC 3339; empty when unknown
}

// String returns the version alone. The CLI and the daemon compare it to learn
// whether they are of one build, so it is the same for every program of a build.
func String() string { return Get().Version }

// Get returns the stamp, completed from the build information of the go command.
func Get() Info {
	info := Info{Version: Version, Commit: Commit, Date: Date}
	if info.Version != "" && info.Commit != "" && info.Date != "" {
		return info
	}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info.orDev()
	}
	for _, s := range build.Settings {
		switch {
		case s.Key == "vcs.revision" && info.Commit == "":
			info.Commit = s.Value
		case s.Key == "vcs.time" && info.Date == "":
			info.Date = s.Value
		}
	}
	if v := build.Main.Version; info.Version == "" && v != "" && v != "(devel)" {
		info.Version = v
	}
	return info.orDev()
}

func (i Info) orDev() Info {
	if i.Version == "" {
		i.Version = "dev"
	}
	return i
}
