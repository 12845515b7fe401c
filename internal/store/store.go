// Package store keeps what is durable in SQLite: VMs, images and kernels, and what
// of the host's network is theirs.
// Nothing here describes transient kernel or process state.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"banger/internal/errdefs"
	"banger/internal/lockrank"
	"banger/internal/paths"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is the database. Writers queue on SQLite's own lock (rank 50 of the lock
// order): no method does anything but SQL while it holds a transaction.
type Store struct {
	db            *sql.DB
	getVM, findVM *sql.Stmt // closed with db
}

// Open opens or makes the database at path and brings its schema up to date.
// A database that is not readable as one is renamed aside, never deleted, and
// aside is then its new name; a database newer than this binary is refused.
func Open(ctx context.Context, path string) (s *Store, aside string, err error) {
	s, err = open(ctx, path)
	if err == nil || !isCorrupt(err) {
		return s, "", err
	}
	aside = path + paths.CorruptSuffix + time.Now().UTC().Format("20060102T150405.000000000")
	// The database goes last: should we end in between, a log that stays behind
	// must not be taken for the new one's.
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if rerr := os.Rename(path+suffix, aside+suffix); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			return nil, "", errdefs.Internal("keep corrupt database aside: %w", rerr)
		}
	}
	s, err = open(ctx, path)
	return s, aside, err
}

// Kept lists the databases at path that were renamed aside and are still there,
// oldest first.
func Kept(path string) []string {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil // whoever opens a database there will say so
	}
	var kept []string
	for _, e := range entries {
		name := e.Name()
		log := strings.HasSuffix(name, "-wal") || strings.HasSuffix(name, "-shm")
		if strings.HasPrefix(name, filepath.Base(path)+paths.CorruptSuffix) && !log {
			kept = append(kept, filepath.Join(filepath.Dir(path), name))
		}
	}
	return kept
}

func open(ctx context.Context, path string) (*Store, error) {
	// Pragmas belong in the DSN: the pool opens connections whenever it likes, and
	// each must have them.
	q := url.Values{
		"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "cache_size(-2000)"},
		"_txlock": {"immediate"},
	}
	// SQLite would make the file readable for everybody.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	_ = f.Close()
	db, err := sql.Open("sqlite", dsn(path, q))
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db.SetMaxOpenConns(4)
	db.SetMaxIdleConns(2)
	err = check(ctx, db)
	if err == nil {
		err = migrate(ctx, db)
	}
	if err == nil {
		err = reserve(ctx, db)
	}
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open database %s: %w", path, full(err))
	}
	s := &Store{db: db}
	if err := s.prepare(ctx); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	return s, nil
}

// prepare parses the queries that every stream and every verb begins with.
func (s *Store) prepare(ctx context.Context) (err error) {
	if s.getVM, err = s.db.PrepareContext(ctx, getVMQuery); err != nil {
		return err
	}
	s.findVM, err = s.db.PrepareContext(ctx, findVMQuery)
	return err
}

// errDamaged is what SQLite finds when it looks through a whole database.
var errDamaged = errors.New("database is damaged")

// check reads all of the database: damage in a table nobody has looked at yet would
// show only when it is too late to begin anew.
func check(ctx context.Context, db *sql.DB) error {
	var verdict string
	if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s", errDamaged, verdict)
	}
	return nil
}

// Peek opens the database for reading only, whoever has it open; nothing is made
// or migrated, so what is newer than the database cannot be asked for; VMs are not to
// be. It errors with ErrNotFound when there is none.
func Peek(ctx context.Context, path string) (*Store, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, errdefs.NotFound("no database: %w", err)
	}
	q := url.Values{"mode": {"ro"}, "_pragma": {"busy_timeout(2000)"}}
	db, err := sql.Open("sqlite", dsn(path, q))
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	var tables int
	if err := db.QueryRowContext(ctx, `SELECT COUNT(*) FROM sqlite_schema`).Scan(&tables); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open database: %w", err)
	}
	return &Store{db: db}, nil
}

func dsn(path string, q url.Values) string {
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

func migrate(ctx context.Context, db *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(database.DialectSQLite3, db, dir)
	if err != nil {
		return err
	}
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	sources := p.ListSources()
	want := sources[len(sources)-1].Version
	switch {
	case have == want:
		return nil
	case have > want:
		return errdefs.Precondition("database has schema version %d; this bangerd knows up to %d", have, want).
			WithHint("install the bangerd that last used this state directory, or a newer one")
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate from version %d to %d: %w", have, want, err)
	}
	return nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

func isCorrupt(err error) bool {
	if errors.Is(err, errDamaged) {
		return true
	}
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return false
	}
	code := se.Code() & 0xff
	return code == sqlite3.SQLITE_NOTADB || code == sqlite3.SQLITE_CORRUPT
}

// uniqueOn reports whether err says that a unique index refused a row.
func uniqueOn(err error) bool {
	var se *sqlite.Error
	return errors.As(err, &se) && (se.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || se.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// missingOn reports whether err says that a row refers to one that is gone.
func missingOn(err error) bool {
	var se *sqlite.Error
	return errors.As(err, &se) && se.Code() == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
}

// full makes SQLite's word for a full disk the system's, which has a class and a
// hint; other errors stay as they are.
func full(err error) error {
	var se *sqlite.Error
	if errors.As(err, &se) && (se.Code()&0xff == sqlite3.SQLITE_FULL || se.Code() == sqlite3.SQLITE_IOERR_SHMSIZE) {
		return fmt.Errorf("%w: %w", err, syscall.ENOSPC)
	}
	return err
}

// reserved is how much space the database and its log keep for writes on a full
// disk, in bytes: many times what one takes.
const reserved = 64 << 10

// reserve makes both files larger by that. SQLite keeps free pages and writes its
// log from the beginning again, so this lasts. Without space it is left to the next
// start.
func reserve(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, fmt.Sprintf(`CREATE TABLE IF NOT EXISTS reserved (x);
		INSERT INTO reserved VALUES (zeroblob(%d));
		DROP TABLE reserved;
		PRAGMA wal_checkpoint(RESTART)`, reserved))
	if err = full(err); errors.Is(err, syscall.ENOSPC) {
		return nil
	}
	return err
}

// write runs a write. Where the disk has no space for it, it runs once more into
// what is reserved: the log, emptied. Undoing and deleting, which make space, must
// not fail for the want of it.
func (s *Store) write(ctx context.Context, do func() error) error {
	defer lockrank.Take(lockrank.Transaction, "a transaction")()
	err := full(do())
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	if _, cerr := s.db.ExecContext(ctx, `PRAGMA wal_checkpoint(RESTART)`); cerr != nil {
		return err
	}
	return full(do())
}

// tx runs fn in one write transaction; on a full disk perhaps twice.
func (s *Store) tx(ctx context.Context, fn func(*sql.Tx) error) error {
	return s.write(ctx, func() error {
		tx, err := s.db.BeginTx(ctx, nil)
		if err != nil {
			return fmt.Errorf("begin transaction: %w", err)
		}
		defer func() { _ = tx.Rollback() }()
		if err := fn(tx); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		return nil
	})
}

// exec runs one statement that writes.
func (s *Store) exec(ctx context.Context, statement string, args ...any) (res sql.Result, err error) {
	err = s.write(ctx, func() error {
		res, err = s.db.ExecContext(ctx, statement, args...)
		return err
	})
	return res, err
}

func toUnix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromUnix(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
