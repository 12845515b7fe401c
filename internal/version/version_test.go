package version

import "testing"

func TestGetPrefersTheStamp(t *testing.T) {
	t.Cleanup(func() { Version, Commit, Date = "", "", "" })
	Version, Commit, Date = "v1.2.3", "abc", "2026-01-02T03:04:05Z"
	if got, want := Get(), (Info{"v1.2.3", "abc", "2026-01-02T03:04:05Z"}); got != want {
		t.Fatalf("Get() = %+v, want %+v", got, want)
	}
}

func TestGetIsNeverEmpty(t *testing.T) {
	if String() == "" {
		t.Fatal("a build without a stamp has no version")
	}
}
