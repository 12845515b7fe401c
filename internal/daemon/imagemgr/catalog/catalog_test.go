package catalog

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

var someDigest = blobs.Of([]byte("x"))

// entry is a catalog with one entry, changed.
func entry(change func(e map[string]any)) []byte {
	e := map[string]any{
		"kind": "kernel", "name": "small", "arch": "amd64", "digest": string(someDigest), "size": 100, "unpacked": 1000,
		"url": "kernels/small.tar.zst", "description": "small",
	}
	if change != nil {
		change(e)
	}
	return listOf(e)
}

func listOf(entries ...map[string]any) []byte {
	data, err := json.Marshal(map[string]any{"format": 1, "entries": entries})
	if err != nil {
		panic(err)
	}
	return data
}

func set(key string, value any) []byte { return entry(func(e map[string]any) { e[key] = value }) }

// hostile is a corpus of catalogs that are not what they should be, with a piece of what
// is said of each.
func hostile() map[string]struct {
	data []byte
	says string
} {
	type bad = struct {
		data []byte
		says string
	}
	two := func(second map[string]any) []byte {
		var l map[string][]map[string]any
		_ = json.Unmarshal(bytes.Replace(entry(nil), []byte(`,"format":1`), nil, 1), &l)
		return listOf(l["entries"][0], second)
	}
	many := make([]map[string]any, maxEntries+1)
	return map[string]bad{
		"nothing":            {nil, "EOF"},
		"no JSON":            {[]byte("<html>"), "invalid character"},
		"cut":                {entry(nil)[:60], "unexpected"},
		"more follows":       {append(entry(nil), "[]"...), "follows"},
		"too long":           {bytes.Repeat([]byte(" "), maxCatalog+1), "bytes"},
		"too many":           {listOf(many...), "entries"},
		"deep":               {[]byte(strings.Repeat(`{"entries":[`, 50)), "nested"},
		"no format":          {[]byte(`{"entries":[]}`), "format 0"},
		"a later format":     {[]byte(`{"format":2,"entries":[]}`), "format 2"},
		"format is text":     {[]byte(`{"format":"1","entries":[]}`), "format"},
		"unknown field":      {[]byte(`{"format":1,"entries":[],"include":"http://x"}`), "unknown field"},
		"field twice":        {[]byte(`{"format":1,"format":1,"entries":[]}`), "twice"},
		"not UTF-8":          {[]byte("{\"format\":1,\"entries\":[],\"\xff\":1}"), "UTF-8"},
		"unknown in entry":   {set("run", "x"), "unknown field"},
		"kind":               {set("kind", "rom"), "neither"},
		"no name":            {set("name", ""), "not allowed"},
		"escaping name":      {set("name", "../x"), "not allowed"},
		"name of an option":  {set("name", "-x"), "not allowed"},
		"long name":          {set("name", strings.Repeat("n", 129)), "not allowed"},
		"no arch":            {set("arch", ""), "architecture"},
		"arch with a slash":  {set("arch", "amd64/.."), "architecture"},
		"no digest":          {set("digest", ""), "digest"},
		"other digest":       {set("digest", "md5:d41d8cd98f00b204e9800998ecf8427e"), "digest"},
		"short digest":       {set("digest", "sha256:abcd"), "digest"},
		"no size":            {set("size", 0), "bytes"},
		"negative size":      {set("size", -1), "bytes"},
		"huge size":          {set("size", int64(1)<<60), "bytes"},
		"size of no integer": {set("size", 1.5), "size"},
		"no unpacked":        {set("unpacked", 0), "unpacks"},
		"huge unpacked":      {set("unpacked", int64(1)<<60), "unpacks"},
		"no url":             {set("url", ""), "URL"},
		"file url":           {set("url", "file:///etc/passwd"), "URL"},
		"absolute path":      {set("url", "/etc/passwd"), "URL"},
		"escaping url":       {set("url", "../../x"), "URL"},
		"escaping, encoded":  {set("url", "a/%2e%2e/%2e%2e/x"), "URL"},
		"other host":         {set("url", "//evil/x"), "URL"},
		"other scheme":       {set("url", "ftp://evil/x"), "URL"},
		"opaque url":         {set("url", "http:x"), "URL"},
		"url without host":   {set("url", "http:///x"), "URL"},
		"long url":           {set("url", "http://x/"+strings.Repeat("y", maxURL)), "URL"},
		"colours":            {set("description", "\x1b[31mred"), "printable"},
		"two lines":          {set("description", "one\ntwo"), "printable"},
		"long description":   {set("description", strings.Repeat("d", 501)), "printable"},
		"kernel of a kernel": {set("kernel", "small"), "prefers"},
		"bad kernel": {entry(func(e map[string]any) {
			e["kind"], e["kernel"] = "image", "../x"
		}), "not allowed"},
		"same name twice": {two(map[string]any{
			"kind": "kernel", "name": "small", "arch": "amd64", "digest": string(blobs.Of([]byte("y"))), "size": 1, "unpacked": 1, "url": "x", "description": "",
		}), "twice"},
	}
}

func TestHostileCatalogs(t *testing.T) {
	for name, bad := range hostile() {
		entries, err := Decode(bad.data)
		class := errdefs.ClassOf(err)
		if err == nil || entries != nil || !slices.Contains([]errdefs.Class{errdefs.ClassInvalidArgument, errdefs.ClassUnsupported, errdefs.ClassExhausted}, class) {
			t.Errorf("%s: class %q, %d entries: %v", name, class, len(entries), err)
		} else if !strings.Contains(err.Error(), bad.says) {
			t.Errorf("%s: %v; want something of %q", name, err, bad.says)
		} else if len(err.Error()) > 600 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestDecode(t *testing.T) {
	if _, err := Decode(builtin); err != nil {
		t.Errorf("built-in catalog: %v", err)
	}
	image := entry(func(e map[string]any) {
		e["kind"], e["kernel"], e["url"], e["arch"] = "image", "small:6.1", "https://example.org/a.tar.zst?x=1", "arm64"
	})
	for _, good := range [][]byte{entry(nil), image} {
		if entries, err := Decode(good); err != nil || len(entries) != 1 {
			t.Errorf("%s: %v", good, err)
		}
	}
}

func check(t *testing.T, data []byte) {
	entries, err := Decode(data)
	if err != nil {
		if errdefs.ClassOf(err) == errdefs.ClassInternal {
			t.Fatal(err)
		}
		return
	}
	for _, e := range entries {
		if err := e.check(); err != nil {
			t.Fatal(err)
		}
		if w := e.Want(); w.Size <= 0 || w.Unpacked <= 0 || w.Name == "" {
			t.Fatalf("%+v", w)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, bad := range hostile() {
		if len(bad.data) < 4<<10 {
			f.Add(bad.data)
		}
	}
	f.Add(entry(nil))
	f.Fuzz(check)
}

// A short run of that, the same each time.
func TestMutatedCatalogs(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	good := entry(nil)
	for range 20_000 {
		data := bytes.Clone(good)
		for range 1 + rng.IntN(3) {
			data[rng.IntN(len(data))] = byte(rng.Uint32())
		}
		check(t, data)
	}
}
