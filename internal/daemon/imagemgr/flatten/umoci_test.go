package flatten_test

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/flatten"
)

// differs are the rules where umoci's tree is another one, and why ours is right: it is
// containerd's, or what is said of the rule.
var differs = map[string]string{
	"the root is no file":                           "umoci refuses it; containerd skips all entries for the root",
	"two entries of one directory add up":           "umoci removes the attributes of the first; containerd only sets",
	"of nothing, in a directory that is missing":    "containerd makes the parents of whiteouts",
	"make the directory":                            "containerd makes the parents of opaque markers",
	"after one":                                     "umoci's whiteouts are for lower layers; containerd removes what is there at that point",
	"AUFS's bookkeeping is gone":                    "umoci keeps some of it, as containerd does",
	"what it has may be linked to":                  "umoci keeps some of it, as containerd does",
	"give the inode their attributes":               "umoci leaves the inode as it is; containerd sets owner, mode and time",
	"to a symbolic link, which stays one":           "umoci leaves the inode as it is; containerd sets the owner",
	"times":                                         "the host's filesystem may hold fewer, and umoci asks for all",
	"extended attributes":                           "umoci sets no security.selinux",
	"an ACL follows the mode, or is nothing but it": "umoci sets the mode first, so that it follows the ACL",
	"those that cannot be are dropped":              "umoci fails at what containerd drops",
	"an empty value of an attribute":                "umoci takes it for no attribute",
	"global headers say nothing":                    "umoci refuses them; containerd skips them",
	"GNU's sparse files":                            "umoci knows only PAX's",
}

// nasty is an image of all that is allowed, with times everywhere.
var nasty = layers{
	{
		dir("bin").own(0, 5).at(time.Unix(1_600_000_000, 123_456_789)),
		file("bin/su", strings.Repeat("suid", 5000)).mode(0o4755).at(time.Unix(1_600_000_001, 1)),
		file("bin/ping", "ping").mode(0o755).at(time.Unix(1_600_000_002, 0)).xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		hard("bin/ping6", "bin/ping").mode(0o755).at(time.Unix(1_600_000_002, 0)).xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		sym("sbin", "bin").own(3, 4).at(time.Unix(1_600_000_003, 7)),
		dir("tmp").mode(0o1777).at(time.Unix(1_600_000_004, 0)),
		file("tmp/acl", "acl").at(time.Unix(1_600_000_005, 0)).mode(0o770).xattr("system.posix_acl_access", acl),
		dir("tmp/d").at(time.Unix(1_600_000_006, 0)).xattr("system.posix_acl_default", acl).xattr("user.note", "\x00\xff"),
		dev(tar.TypeFifo, "tmp/p", 0, 0).at(time.Unix(1_600_000_007, 0)).mode(0o620),
		dev(tar.TypeChar, "tmp/null", 1, 3).at(time.Unix(1_600_000_008, 0)).mode(0o666),
		dev(tar.TypeBlock, "tmp/loop", 7, 300).own(0, 6).at(time.Unix(1_600_000_009, 0)),
		file("tmp/"+strings.Repeat("long", 60), "long").at(time.Unix(1_600_000_010, 0)),
		file("tmp/caf\xe9", "latin").own(3_000_000_000, 70_000).at(time.Unix(1_600_000_011, 0)),
		dir("gone").at(time.Unix(1, 0)), file("gone/a", "1").at(time.Unix(1, 0)), file("gone/b", "2").at(time.Unix(1, 0)),
		dir("old").at(time.Unix(2, 0)), file("old/a", "1").at(time.Unix(1, 0)), file("old/b", "2").at(time.Unix(1, 0)),
		file("kept", "by a link").at(time.Unix(3, 0)),
	},
	{
		file(".wh.gone", ""), file("old/.wh..wh..opq", ""), file("old/c", "3").at(time.Unix(4, 5)),
		file("sbin/through", "a link").at(time.Unix(5, 6)),
		hard("tmp/d/link", "kept").at(time.Unix(3, 0)), file(".wh.kept", ""),
		dir("tmp/p").at(time.Unix(6, 0)), file("tmp/p/f", "a fifo was here").at(time.Unix(6, 0)),
		sym("tmp/null", "../bin/su").at(time.Unix(7, 8)),
		dir("bin").own(0, 5).mode(0o711).at(time.Unix(1_600_000_012, 0)),
	},
}

func TestUmociAgrees(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("umoci keeps owners and devices only as root")
	}
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("no umoci: ", err)
	}
	images := append(slices.Clone(rules), rule{name: "a nasty image", layers: nasty})
	for _, r := range images {
		if r.want.class != nil {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range r.layers {
				tars = append(tars, tarOf(t, l...))
			}
			if len(tars) == 0 {
				t.Skip("umoci takes no image without layers")
			}
			s := newSink(t)
			root, _, err := flatten.Flatten(t.Context(), layersOf(tars...), s, flatten.Limits{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			ours := s.inodes(root)
			theirs, err := umoci(t, tars)
			diff := fmt.Sprint(err)
			if err == nil {
				diff = compare(ours, theirs)
			}
			why, known := differs[r.name]
			switch {
			case diff != "" && !known:
				t.Errorf("umoci has another tree:\n%s", diff)
			case diff == "" && known:
				t.Errorf("umoci has the same tree, though it should not: %s", why)
			case known:
				t.Logf("differs, as %s:\n%s", why, diff)
			}
		})
	}
}

// inode is what is compared of a name.
type inode struct {
	What   string // type, mode, owner, device, number of links, target, content
	Xattrs map[string]string
	Time   string
}

func (s *sink) inodes(root *ext4.Inode) map[string]inode {
	names := map[*ext4.Inode]int{}
	walk(root, "", func(_ string, in *ext4.Inode) { names[in]++ })
	all := map[string]inode{}
	walk(root, "", func(p string, in *ext4.Inode) {
		i := inode{Xattrs: map[string]string{}, Time: fmt.Sprintf("%d.%09d", in.MTime.Sec, in.MTime.Nsec)}
		content := ""
		if in.Data.Size() > 0 {
			content = s.live[place(in.Data)][0]
		}
		links := names[in]
		if in.Mode&unix.S_IFMT == unix.S_IFDIR {
			links = 0
		}
		i.What = fmt.Sprintf("%o %d:%d dev %d:%d links %d -> %q %q", in.Mode, in.UID, in.GID, in.Rdev.Major, in.Rdev.Minor, links, in.Target, content)
		for _, x := range in.Xattrs {
			i.Xattrs[x.Name] = x.Value
		}
		if p != "" { // whose attributes are the unpacker's
			all[p] = i
		}
	})
	return all
}

// compare returns how the trees differ, "" if they do not.
func compare(ours, theirs map[string]inode) string {
	var diff []string
	for p, o := range ours {
		u, ok := theirs[p]
		switch {
		case !ok:
			diff = append(diff, fmt.Sprintf("%.300q: only ours: %.300v", p, o))
			continue
		case o.Time == "0.000000000" && strings.HasPrefix(o.What, "4"):
			u.Time = o.Time // a directory that nobody has given a time
		}
		if fmt.Sprint(o) != fmt.Sprint(u) {
			diff = append(diff, fmt.Sprintf("%.300q: ours  %.300q\n   umoci %.300q", p, fmt.Sprint(o), fmt.Sprint(u)))
		}
	}
	for p, u := range theirs {
		if _, ok := ours[p]; !ok {
			diff = append(diff, fmt.Sprintf("%.300q: only umoci's: %.300v", p, u))
		}
	}
	slices.Sort(diff)
	return strings.Join(diff, "\n")
}

// umoci unpacks an image of the layers and returns what it has made.
func umoci(t *testing.T, tars [][]byte) (map[string]inode, error) {
	t.Helper()
	layout := t.TempDir()
	blob := func(b []byte) map[string]any {
		d := digest(b)
		name := filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(d, "sha256:"))
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return map[string]any{"digest": d, "size": len(b)}
	}
	typed := func(m map[string]any, mediaType string) map[string]any {
		m["mediaType"] = mediaType
		return m
	}
	text := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if err := os.MkdirAll(filepath.Join(layout, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	var all []any
	var diffIDs []string
	for _, b := range tars {
		all = append(all, typed(blob(b), ociTar))
		diffIDs = append(diffIDs, digest(b))
	}
	config := typed(blob(text(map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}})), "application/vnd.oci.image.config.v1+json")
	manifest := typed(blob(text(map[string]any{"schemaVersion": 2, "config": config, "layers": all})), "application/vnd.oci.image.manifest.v1+json")
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "test"}
	for name, v := range map[string]any{
		"oci-layout": map[string]string{"imageLayoutVersion": "1.0.0"},
		"index.json": map[string]any{"schemaVersion": 2, "manifests": []any{manifest}},
	} {
		if err := os.WriteFile(filepath.Join(layout, name), text(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	out, err := exec.CommandContext(t.Context(), "umoci", "unpack", "--image", layout+":test", bundle).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("umoci unpack: %w: %s", err, out)
	}
	return onDisk(t, filepath.Join(bundle, "rootfs")), nil
}

func onDisk(t *testing.T, root string) map[string]inode {
	t.Helper()
	all := map[string]inode{}
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		fi, err := os.Lstat(name)
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		i := inode{Xattrs: map[string]string{}, Time: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)}
		links := st.Nlink
		target, content := "", ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			links = 0
		case unix.S_IFLNK:
			target, err = os.Readlink(name)
		case unix.S_IFREG:
			var b []byte
			b, err = os.ReadFile(name)
			content = short(b)
		}
		if err != nil {
			return err
		}
		i.What = fmt.Sprintf("%o %d:%d dev %d:%d links %d -> %q %q", st.Mode, st.Uid, st.Gid, unix.Major(st.Rdev), unix.Minor(st.Rdev), links, target, content)
		list := make([]byte, 64<<10)
		n, err := unix.Llistxattr(name, list)
		if err != nil {
			return fmt.Errorf("list attributes of %s: %w", name, err)
		}
		for _, a := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
			value := make([]byte, 64<<10)
			if a == "" {
				continue
			}
			n, err := unix.Lgetxattr(name, a, value)
			if err != nil {
				return fmt.Errorf("read %s of %s: %w", a, name, err)
			}
			i.Xattrs[a] = string(value[:n])
		}
		rel, err := filepath.Rel(root, name)
		all[rel] = i
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
