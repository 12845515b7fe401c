package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"banger/internal/errdefs"
)

// Mirrors are places to try before a registry, in their order, by the registry's host.
type Mirrors map[string][]string

// Hosts are hosts of registries.
type Hosts []string

// several marks values that are more than one scalar.
type several interface{ several() }

func (*Mirrors) several() {}
func (*Hosts) several()   {}

const (
	hostHint   = "write it as in references: HOST or HOST:PORT, without a scheme; docker.io for Docker Hub"
	mirrorHint = "write it as [http://]HOST[:PORT][/PREFIX]"
)

var (
	registryHost = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?$`)
	mirrorPrefix = regexp.MustCompile(`^[a-z0-9]+([._/-]+[a-z0-9]+)*$`)
	platformName = regexp.MustCompile(`^linux/[a-z0-9_]+(/[a-z0-9]+)?$`)
)

// UnmarshalYAML reads {docker.io: [mirror.example]}.
func (m *Mirrors) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return errdefs.Invalid("must be hosts of registries, each with a list of mirrors").WithHint("for example: docker.io: [mirror.example]")
	}
	all := Mirrors{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		host := n.Content[i].Value
		if _, again := all[host]; again {
			return errdefs.Invalid("%q is given twice", host)
		}
		list, err := words(n.Content[i+1])
		if err != nil {
			return fmt.Errorf("%q: %w", host, err)
		}
		all[host] = list
	}
	*m = nil
	if len(all) > 0 {
		*m = all
	}
	return nil
}

// UnmarshalYAML reads [localhost:5000].
func (h *Hosts) UnmarshalYAML(n *yaml.Node) (err error) {
	*h, err = words(n)
	return err
}

func words(n *yaml.Node) ([]string, error) {
	if n.Kind != yaml.SequenceNode {
		return nil, errdefs.Invalid("must be a list").WithHint("for example: [one.example, two.example]")
	}
	var all []string
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.Value == "" {
			return nil, errdefs.Invalid("must be a list of words").WithHint("for example: [one.example, two.example]")
		}
		all = append(all, item.Value)
	}
	return all, nil
}

// MarshalYAML prints it on one line.
func (m Mirrors) MarshalYAML() (any, error) {
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	for _, host := range slices.Sorted(maps.Keys(m)) {
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: host}, flow(m[host]))
	}
	return n, nil
}

// MarshalYAML prints it on one line.
func (h Hosts) MarshalYAML() (any, error) { return flow(h), nil }

func flow(words []string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, w := range words {
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: w})
	}
	return n
}

func (m Mirrors) check() *errdefs.Error {
	for _, host := range slices.Sorted(maps.Keys(m)) {
		if !registryHost.MatchString(host) {
			return errdefs.Invalid("%q is no host of a registry", host).WithHint(hostHint)
		}
		for _, mirror := range m[host] {
			place := strings.TrimPrefix(strings.TrimPrefix(mirror, "https://"), "http://")
			at, prefix, _ := strings.Cut(strings.TrimSuffix(place, "/"), "/")
			if !registryHost.MatchString(at) || prefix != "" && !mirrorPrefix.MatchString(prefix) {
				return errdefs.Invalid("%q is no mirror of %s", mirror, host).WithHint(mirrorHint)
			}
		}
	}
	return nil
}

func (h Hosts) check() *errdefs.Error {
	for _, host := range h {
		if !registryHost.MatchString(host) {
			return errdefs.Invalid("%q is no host of a registry", host).WithHint(hostHint)
		}
	}
	return nil
}

func platform(name string) *errdefs.Error {
	if name == Auto || platformName.MatchString(name) {
		return nil
	}
	return errdefs.Invalid("must be auto or linux/ARCHITECTURE[/VARIANT], not %q", name).WithHint("for example linux/amd64")
}
