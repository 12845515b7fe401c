package config

import (
	"net/url"
	"path/filepath"
	"regexp"

	"gopkg.in/yaml.v3"

	"banger/internal/errdefs"
)

// Catalogs are signed lists of kernels and images; of a name the first one counts.
type Catalogs []Catalog

// Catalog is one of them.
type Catalog struct {
	URL string // http, https, file, or an absolute path
	Key string // public key of minisign's
}

func (*Catalogs) several() {}

const catalogHint = "for example: [{url: https://example.org/catalog.json, key: RW…}], with what minisign has in its .pub file"

// publicKey is what minisign's public keys look like: two letters that say so, 8 bytes of
// its number and 32 of the key.
var publicKey = regexp.MustCompile(`^RW[A-Za-z0-9+/]{54}$`)

// UnmarshalYAML reads [{url: https://example.org/catalog.json, key: RW…}].
func (c *Catalogs) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		return errdefs.Invalid("must be a list of catalogs").WithHint(catalogHint)
	}
	var all Catalogs
	for _, item := range n.Content {
		if item.Kind != yaml.MappingNode {
			return errdefs.Invalid("must be a list of catalogs").WithHint(catalogHint)
		}
		var one Catalog
		for i := 0; i+1 < len(item.Content); i += 2 {
			field := map[string]*string{"url": &one.URL, "key": &one.Key}[item.Content[i].Value]
			if field == nil || *field != "" || item.Content[i+1].Kind != yaml.ScalarNode {
				return errdefs.Invalid("%q of a catalog", item.Content[i].Value).WithHint(catalogHint)
			}
			*field = item.Content[i+1].Value
		}
		all = append(all, one)
	}
	*c = all
	return nil
}

// MarshalYAML prints them on one line.
func (c Catalogs) MarshalYAML() (any, error) {
	all := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	word := func(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }
	for _, one := range c {
		all.Content = append(all.Content, &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle, Content: []*yaml.Node{
			word("url"), word(one.URL), word("key"), word(one.Key),
		}})
	}
	return all, nil
}

func (c Catalogs) check() *errdefs.Error {
	seen := map[string]bool{}
	for _, one := range c {
		u, err := url.Parse(one.URL)
		switch {
		case filepath.IsAbs(one.URL):
		case err != nil || u.Host == "" && u.Scheme != "file":
			return errdefs.Invalid("%q is no address of a catalog", one.URL).WithHint(catalogHint)
		case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "file":
			return errdefs.Invalid("%q is no address of a catalog", one.URL).WithHint(catalogHint)
		}
		if !publicKey.MatchString(one.Key) {
			return errdefs.Invalid("%q is no public key for %s", one.Key, one.URL).WithHint(catalogHint)
		}
		if seen[one.URL] {
			return errdefs.Invalid("%s is given twice", one.URL)
		}
		seen[one.URL] = true
	}
	return nil
}
