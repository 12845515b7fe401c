package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"gopkg.in/yaml.v3"

	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// maxFile bounds what Load reads, in bytes.
const maxFile = 1 << 20

// Source says where the value of a key comes from.
type Source string

// The sources.
const (
	SourceDefault Source = "default"
	SourceFile    Source = "file"
	SourceEnv     Source = "environment"
	SourceHost    Source = "host" // an auto value, resolved
)

// Loaded is a Config with where it came from.
type Loaded struct {
	Config
	File   string // the file that was looked for
	Exists bool   // false: the file is not there and the defaults hold

	sources map[string]Source // by key path, e.g. "vm.cpus"; absent: default
}

// Load reads file over the defaults, applies the environment and validates. A
// missing file is no error. Everything else is: class invalid_argument with the
// path of the key in the message, or permission.
func Load(file string) (Loaded, error) {
	l := Loaded{Config: Default(), File: file, sources: map[string]Source{}}
	data, err := readFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrPermission):
		return l, errdefs.Permission("read config %s: %w", file, err).
			WithHint("make the file readable, or set %s to another", paths.EnvConfig)
	case err != nil:
		return l, errdefs.Invalid("read config %s: %w", file, err)
	default:
		l.Exists = true
		if err := l.decode(data); err != nil {
			return l, errdefs.Wrap(err, "read %s", file)
		}
	}
	if level := os.Getenv(paths.EnvLogLevel); level != "" {
		l.LogLevel = level
		l.sources["log_level"] = SourceEnv
	}
	if err := l.Validate(); err != nil {
		return l, errdefs.Wrap(err, "read %s", file)
	}
	return l, nil
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("more than %d bytes", maxFile)
	}
	return data, err
}

func (l *Loaded) decode(data []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil // an empty file, or only comments
	}
	if err != nil {
		return errdefs.Invalid("config: %w", err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return errdefs.Invalid("config: more than one YAML document")
	}
	return l.decodeMap(doc.Content[0], reflect.ValueOf(&l.Config).Elem(), "")
}

// decodeMap fills the struct v from the mapping n. It walks by hand, rather than
// letting the YAML package fill everything, because an error must name the path
// of its key and an unknown key the ones that were perhaps meant.
func (l *Loaded) decodeMap(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil // a section of which every key is commented out
	}
	if n.Kind != yaml.MappingNode {
		return keyError(path, n, errdefs.Invalid("must be a section of keys"))
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		sub := join(path, key.Value)
		field, names := fieldByKey(v, key.Value)
		switch {
		case !field.IsValid():
			return unknownKey(sub, key, names)
		case seen[key.Value]:
			return keyError(sub, key, errdefs.Invalid("is given twice"))
		}
		seen[key.Value] = true
		if _, value := field.Addr().Interface().(yaml.Unmarshaler); field.Kind() == reflect.Struct && !value {
			if err := l.decodeMap(val, field, sub); err != nil {
				return err
			}
			continue
		}
		if _, many := field.Addr().Interface().(several); val.Kind != yaml.ScalarNode && !many || val.Tag == "!!null" {
			return keyError(sub, val, errdefs.Invalid("needs one value").
				WithHint("remove the line to take the default"))
		}
		if err := val.Decode(field.Addr().Interface()); err != nil {
			return keyError(sub, val, err)
		}
		l.sources[sub] = SourceFile
	}
	return nil
}

// fieldByKey finds the field of v with that YAML key, and names all keys of v.
func fieldByKey(v reflect.Value, key string) (field reflect.Value, names []string) {
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		names = append(names, name)
		if name == key {
			field = v.Field(i)
		}
	}
	return field, names
}

func unknownKey(path string, key *yaml.Node, names []string) error {
	e := errdefs.Invalid("config: %s: unknown key (line %d)", path, key.Line)
	if near := model.Near(key.Value, names); len(near) > 0 {
		return e.WithHint("did you mean %s?", strings.Join(near, " or "))
	}
	return e.WithHint("keys here are %s", strings.Join(names, ", "))
}

func keyError(path string, n *yaml.Node, err error) error {
	if path == "" {
		return errdefs.Invalid("config: the file must be a section of keys (line %d)", n.Line)
	}
	e := errdefs.Invalid("config: %s: %w (line %d)", path, err, n.Line)
	if hint := errdefs.HintOf(err); hint != "" {
		e = e.WithHint("%s", hint)
	}
	return e
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// Show writes the effective configuration as YAML, auto values resolved for h,
// with the source of every value as a comment.
func (l Loaded) Show(w io.Writer, h Host) error {
	doc, err := l.effective(h, func(_ string, value *yaml.Node, source Source) { value.LineComment = string(source) })
	if err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	return enc.Close()
}

// Values is what Show writes, for programs: the sections with their keys, and the
// source of every key by its path, e.g. "vm.cpus".
func (l Loaded) Values(h Host) (values map[string]any, sources map[string]Source, err error) {
	sources = make(map[string]Source)
	doc, err := l.effective(h, func(path string, _ *yaml.Node, source Source) { sources[path] = source })
	if err == nil {
		err = doc.Decode(&values)
	}
	return values, sources, err
}

// effective is the configuration with auto values resolved for h. Every value in it
// is visited with its path and its source.
func (l Loaded) effective(h Host, visit func(path string, value *yaml.Node, source Source)) (*yaml.Node, error) {
	var doc, asWritten yaml.Node
	if err := doc.Encode(l.Resolve(h)); err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	if err := asWritten.Encode(l.Config); err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	l.walk(&doc, &asWritten, "", visit)
	return &doc, nil
}

func (l Loaded) walk(n, written *yaml.Node, path string, visit func(string, *yaml.Node, Source)) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val, was := n.Content[i], n.Content[i+1], written.Content[i+1]
		sub := join(path, key.Value)
		if val.Kind == yaml.MappingNode && val.Style&yaml.FlowStyle == 0 {
			l.walk(val, was, sub, visit)
			continue
		}
		source, ok := l.sources[sub]
		switch {
		case val.Value != was.Value:
			source = SourceHost
		case !ok:
			source = SourceDefault
		}
		visit(sub, val, source)
	}
}
