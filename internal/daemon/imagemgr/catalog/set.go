package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/minisig"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/model"
)

// maxSilence is how long the server of a catalog may say nothing: somebody waits for it
// who may want what is here already, or has only mistyped a name.
const maxSilence = 10 * time.Second

// Source is a catalog and who signs it, as images.catalogs of the configuration says.
type Source struct {
	URL string // http, https, file, or an absolute path
	Key string // public key of minisign's, "RW…"
}

// Options is what a Set is made of.
type Options struct {
	Sources   []Source
	Dir       string       // for what was last seen of each; made when it is needed
	Blobs     *blobs.Cache // where bundles are fetched to
	UserAgent string
	Transport *http.Transport // nil: proxies from the environment
	Retry     oci.Retry
	Log       *slog.Logger
}

// Set is all catalogs of a daemon.
type Set struct {
	o       Options
	sources []*source
	builtin []Entry
	web     *oci.Web // for bundles
	lists   *oci.Web // for catalogs: there mostly is one that was seen before
}

type source struct {
	at  *url.URL // scheme http, https or file
	key minisig.Key

	mu sync.Mutex // guards the file of what was last seen of this one catalog
}

// label is the address as it may be shown: without what may be a key in it.
func (s *source) label() string {
	u := *s.at
	u.RawQuery = ""
	return u.Redacted()
}

// Found is an entry and where it stands.
type Found struct {
	Entry
	Catalog string // address of the catalog; empty: the built-in one
	Key     string // id of the key that has signed it; empty: the built-in one
	url     *url.URL
}

// Origin says, for people, where the bundle is from and who vouches for it.
func (f Found) Origin() string {
	if f.Catalog == "" {
		return originBuiltin + string(f.Digest)
	}
	return fmt.Sprintf("%s%s, signed by %s, %s", origin, f.Catalog, f.Key, f.Digest)
}

const (
	origin        = "catalog "
	originBuiltin = "built-in catalog, "
)

// IsOrigin reports whether text is what Origin says of some entry.
func IsOrigin(text string) bool {
	return strings.HasPrefix(text, origin) || strings.HasPrefix(text, originBuiltin)
}

// New checks the sources; it touches neither disk nor network.
func New(o Options) (*Set, error) {
	brief := o.Retry
	brief.Attempts = 2
	if brief.Silence <= 0 || brief.Silence > maxSilence {
		brief.Silence = maxSilence
	}
	s := &Set{o: o, web: oci.NewWeb(o.UserAgent, o.Transport, o.Retry), lists: oci.NewWeb(o.UserAgent, o.Transport, brief)}
	var err error
	if s.builtin, err = Decode(builtin); err != nil {
		return nil, errdefs.Internal("built-in catalog: %w", err)
	}
	for _, src := range o.Sources {
		at, err := src.address()
		if err != nil {
			return nil, err
		}
		key, err := minisig.ParseKey(src.Key)
		if err != nil {
			return nil, errdefs.Wrap(err, "key of catalog %s", at.Redacted())
		}
		s.sources = append(s.sources, &source{at: at, key: key})
	}
	return s, nil
}

func (s Source) address() (*url.URL, error) {
	if filepath.IsAbs(s.URL) {
		return &url.URL{Scheme: "file", Path: filepath.Clean(s.URL)}, nil
	}
	u, err := parseURL(s.URL)
	if err == nil && !web(u) && (u.Scheme != "file" || u.Host != "" || !filepath.IsAbs(u.Path)) {
		err = errdefs.Invalid("URL %q is none", clip(s.URL))
	}
	if err != nil {
		return nil, errdefs.Invalid("catalog: %w", err).WithHint("give an address with http or https, or an absolute path")
	}
	return u, nil
}

// Close closes connections that nobody uses.
func (s *Set) Close() {
	s.web.Close()
	s.lists.Close()
}

// Offers returns what there is of a kind for this architecture, in the order of the
// catalogs, once each. A catalog that cannot be read is an error, as with Find.
func (s *Set) Offers(ctx context.Context, kind string) ([]Found, error) {
	var all []Found
	seen := map[string]bool{}
	add := func(src *source, entries []Entry) error {
		for _, e := range entries {
			if e.Kind != kind || e.Arch != bundle.Arch || seen[e.Name] {
				continue
			}
			seen[e.Name] = true
			f, err := src.found(e)
			if err != nil {
				return err
			}
			all = append(all, f)
		}
		return nil
	}
	for _, src := range s.sources {
		entries, err := s.read(ctx, src)
		if err == nil {
			err = add(src, entries)
		}
		if err != nil {
			return nil, errdefs.Wrap(err, "catalog %s", src.label())
		}
	}
	return all, add(nil, s.builtin)
}

// found is an entry of a catalog; nil: of the built-in one.
func (s *source) found(e Entry) (f Found, err error) {
	if s == nil {
		f = Found{Entry: e}
		f.url, err = url.Parse(e.URL)
		return f, err
	}
	f = Found{Entry: e, Catalog: s.label(), Key: s.key.ID()}
	f.url, err = s.at.Parse(e.URL)
	return f, err
}

// Find looks an entry up for this architecture. That none has it is an error of class
// not_found, with what looks like it as the hint.
func (s *Set) Find(ctx context.Context, kind, name string) (Found, error) {
	var names []string
	look := func(entries []Entry) (Entry, bool) {
		for _, e := range entries {
			if e.Kind != kind || e.Arch != bundle.Arch {
				continue
			}
			if e.Name == name {
				return e, true
			}
			names = append(names, e.Name)
		}
		return Entry{}, false
	}
	for _, src := range s.sources {
		entries, err := s.read(ctx, src)
		if err != nil {
			return Found{}, errdefs.Wrap(err, "catalog %s", src.label())
		}
		if e, ok := look(entries); ok {
			return src.found(e)
		}
	}
	if e, ok := look(s.builtin); ok {
		return (*source)(nil).found(e)
	}
	err := errdefs.NotFound("no catalog has the %s %q", kind, name)
	if near := model.Near(name, names); len(near) > 0 {
		return Found{}, err.WithHint("did you mean %s?", strings.Join(near, ", "))
	}
	return Found{}, err
}

// Names returns what could be pulled when the catalogs were last seen, in their order,
// once each: for hints.
func (s *Set) Names(kind string) []string {
	var names []string
	seen := map[string]bool{}
	add := func(entries []Entry) {
		for _, e := range entries {
			if e.Kind == kind && e.Arch == bundle.Arch && !seen[e.Name] {
				seen[e.Name] = true
				names = append(names, e.Name)
			}
		}
	}
	for _, src := range s.sources {
		if last, err := s.lastSeen(src); err == nil {
			add(last.entries)
		}
	}
	add(s.builtin)
	return names
}

// Open returns the bundle, whole and with the right digest: from the cache, or fetched
// into it. Whoever has called it closes it.
func (s *Set) Open(ctx context.Context, f Found, p model.Progress) (io.ReadCloser, error) {
	if f.url.Scheme == "file" {
		file, err := openWhole(ctx, f)
		if err != nil {
			return nil, err
		}
		return file, nil
	}
	count := func(done int64) { p.Count(done, f.Size, "bytes") }
	for {
		if err := s.o.Blobs.Fetch(ctx, f.Digest, f.Size, s.web.Fill(f.url.String(), f.Digest), count); err != nil {
			return nil, err
		}
		file, err := s.o.Blobs.Open(f.Digest)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) { // else it was pruned since
			return nil, err
		}
	}
}

// openWhole opens a bundle that is a file of somebody's, and reads it once to judge it.
func openWhole(ctx context.Context, f Found) (*os.File, error) {
	file, err := openFile(f.url.Path)
	if err != nil {
		return nil, err
	}
	if err = bundle.Verify(ctx, file, f.Digest, f.Size); err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = file.Close()
		return nil, errdefs.Wrap(err, "%s", f.url.Path)
	}
	return file, nil
}

func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe has no other end
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errdefs.NotFound("%w", err)
		}
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errdefs.Invalid("%s is not a regular file", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// read returns the newest state of a catalog that can be had.
func (s *Set) read(ctx context.Context, src *source) ([]Entry, error) {
	data, sig, err := s.fetch(ctx, src)
	if err == nil {
		if _, verr := src.key.Verify(data, sig); verr != nil {
			data, sig, err = s.fetch(ctx, src) // it may have been replaced between the two requests
		}
	}
	src.mu.Lock()
	defer src.mu.Unlock()
	last, lastErr := s.lastSeen(src)
	if err != nil {
		if lastErr != nil || ctx.Err() != nil {
			return nil, err
		}
		s.o.Log.WarnContext(ctx, "using what was last seen of a catalog", logkey.Src, src.label(), logkey.Err, err)
		return last.entries, nil
	}
	now, err := verified(src, data, sig)
	if err != nil {
		return nil, err
	}
	if lastErr == nil && now.signed.Time.Before(last.signed.Time) {
		return nil, errdefs.Permission("it was signed %s, before the one that was seen last (%s)",
			now.signed.Time.UTC().Format("2006-01-02 15:04:05"), last.signed.Time.UTC().Format("2006-01-02 15:04:05")).
			WithHint("somebody offers an old list; if its owner has done so on purpose, sign it again")
	}
	if lastErr != nil || string(last.raw) != string(now.raw) {
		if err := s.keep(src, data, sig); err != nil {
			s.o.Log.WarnContext(ctx, "not keeping a catalog", logkey.Src, src.label(), logkey.Err, err)
		}
	}
	return now.entries, nil
}

func (s *Set) fetch(ctx context.Context, src *source) (data, sig []byte, err error) {
	get := func(at *url.URL, limit int64) ([]byte, error) {
		if at.Scheme != "file" {
			return s.lists.Get(ctx, at.String(), limit)
		}
		f, err := openFile(at.Path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readBounded(f, limit)
	}
	signature := *src.at
	signature.Path, signature.RawPath = src.at.Path+bundle.SignatureSuffix, ""
	if sig, err = get(&signature, minisig.MaxSize); err != nil {
		return nil, nil, err
	}
	data, err = get(src.at, maxCatalog)
	return data, sig, err
}

func readBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errdefs.Exhausted("it has more than %d bytes", limit)
	}
	return data, err
}

// state is a catalog that is to be believed.
type state struct {
	entries []Entry
	signed  minisig.Signed
	raw     []byte
}

// verified checks the signature, and then reads the catalog.
func verified(src *source, data, sig []byte) (state, error) {
	signed, err := src.key.Verify(data, sig)
	if err != nil {
		return state{}, err
	}
	if signed.Time.IsZero() {
		return state{}, errdefs.Permission("its signature has no time").WithHint(`sign it with a trusted comment that begins "timestamp:", as minisign's own does`)
	}
	entries, err := Decode(data)
	return state{entries: entries, signed: signed, raw: data}, err
}

// file is where the last state of a catalog is kept. Another key is another catalog.
func (s *Set) file(src *source) string {
	sum := sha256.Sum256([]byte(src.key.ID() + " " + src.at.String()))
	return filepath.Join(s.o.Dir, hex.EncodeToString(sum[:16]))
}

// The kept file is the signature and the catalog, one after the other, so that one
// rename replaces both. A signature of minisign's has four lines.
func (s *Set) keep(src *source, data, sig []byte) error {
	if err := os.MkdirAll(s.o.Dir, 0o700); err != nil {
		return err
	}
	fresh := s.file(src) + freshSuffix
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append([]byte(strings.TrimRight(string(sig), "\r\n")+"\n"), data...))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(fresh, s.file(src))
}

// freshSuffix ends the names of files that are being written.
const freshSuffix = ".new"

// Tidy removes what a crash left half written. Nobody uses the Set yet.
func (s *Set) Tidy() error {
	entries, err := os.ReadDir(s.o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), freshSuffix) {
			err = errors.Join(err, os.Remove(filepath.Join(s.o.Dir, e.Name())))
		}
	}
	return err
}

// lastSeen reads what keep has written, and believes it no more than what is fetched.
func (s *Set) lastSeen(src *source) (state, error) {
	f, err := os.Open(s.file(src))
	if err != nil {
		return state{}, err
	}
	defer f.Close()
	raw, err := readBounded(f, maxCatalog+minisig.MaxSize+1)
	if err != nil {
		return state{}, err
	}
	text, n := string(raw), 0
	for range 4 {
		i := strings.IndexByte(text[n:], '\n')
		if i < 0 {
			return state{}, io.ErrUnexpectedEOF
		}
		n += i + 1
	}
	return verified(src, raw[n:], raw[:n])
}
