package nat

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
)

// In nftables a packet must be accepted by every base chain that it meets: no
// accept of ours undoes another table's drop, and nothing of ours opens what
// another keeps closed. So beside a firewall that drops what it does not know,
// guests reach nothing until it was told of them. Docker's is told here, because it
// leaves a chain for just that; of others doctor tells (see Obstacles).

// userChain is where Docker leaves room for rules of others, in front of its own.
const userChain = "DOCKER-USER"

// userComment marks our rule in it, for people and for us. It is kept where iptables
// keeps the comments it shows, and so outlives a rewrite of the chain by iptables.
const userComment = "banger: guests"

// AllowInDocker puts one rule into Docker's chain for rules of others, where there
// is one: let through what bears our mark, which is to say what our own table has
// let through. It is written in the form that iptables writes, because iptables
// refuses to work on a table with rules it cannot print. It stands behind the rules
// that are there, so that what the administrator drops stays dropped, and before a
// final RETURN. It changes nothing where it is in place.
func AllowInDocker() error {
	return eachUserChain(func(c *nftables.Conn, chain *nftables.Chain, rules []*nftables.Rule) error {
		var last *nftables.Rule
		for _, r := range rules {
			if isOurs(r) {
				return nil
			}
			last = r
		}
		rule := &nftables.Rule{
			Table: chain.Table, Chain: chain, Exprs: userRule(),
			UserData: userdata.AppendString(nil, userdata.TypeComment, userComment),
		}
		if last != nil && isReturn(last) {
			rule.Position = last.Handle
			c.InsertRule(rule)
			return nil
		}
		c.AddRule(rule)
		return nil
	})
}

// LeaveDocker takes that rule away again.
func LeaveDocker() error {
	return eachUserChain(func(c *nftables.Conn, _ *nftables.Chain, rules []*nftables.Rule) error {
		for _, r := range rules {
			if isOurs(r) {
				if err := c.DelRule(r); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// eachUserChain calls fn for Docker's chain of both IP versions and sends what it
// has put together.
func eachUserChain(fn func(*nftables.Conn, *nftables.Chain, []*nftables.Rule) error) error {
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		c, err := connect()
		if err != nil {
			return err
		}
		chains, err := c.ListChainsOfTableFamily(family)
		if err != nil {
			return fmt.Errorf("look for Docker's chain: %w", err)
		}
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Name == userChain && c.Table.Name == "filter" })
		if i < 0 {
			continue
		}
		chain := chains[i]
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return fmt.Errorf("read Docker's chain: %w", err)
		}
		if err := fn(c, chain, rules); err != nil {
			return err
		}
		if err := flush(c, "change Docker's chain "+userChain); err != nil {
			return err
		}
	}
	return nil
}

// userRule is "-m mark --mark Mark/Mark -j ACCEPT".
func userRule() []expr.Any {
	match := xt.Unknown(bytes.Join([][]byte{mark(Mark), mark(Mark), make([]byte, 4)}, nil))
	return []expr.Any{
		&expr.Match{Name: "mark", Rev: 1, Info: &match},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

func isOurs(r *nftables.Rule) bool {
	text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
	return ok && text == userComment
}

// isReturn reports whether a rule does nothing but leave the chain.
func isReturn(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Verdict:
			return e.Kind == expr.VerdictReturn
		default:
			return false
		}
	}
	return false
}

// Firewalld is what the table of firewalld is called in an Obstacle.
const Firewalld = "inet firewalld"

// Obstacle is a chain of somebody else's that may stop guests' packets.
type Obstacle struct {
	Chain string // "ip filter FORWARD"
	Why   string
	Fix   string
}

// Obstacles returns the chains of other tables that drop, or may drop, what guests
// forward through this host or ask of its name server.
func (t Table) Obstacles() ([]Obstacle, error) {
	c, err := connect()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list firewall chains: %w", err)
	}
	docker := map[nftables.TableFamily]bool{}
	for _, chain := range chains {
		if chain.Name == userChain && chain.Table.Name == "filter" {
			docker[chain.Table.Family] = true
		}
	}
	var found []Obstacle
	firewalld := false
	for _, chain := range chains {
		family, ip := ipFamilies[chain.Table.Family]
		if !ip || chain.Table.Name == t.Name || chain.Hooknum == nil {
			continue
		}
		name := family + " " + chain.Table.Name + " " + chain.Name
		drops := chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop
		forwards := *chain.Hooknum == *nftables.ChainHookForward
		receives := *chain.Hooknum == *nftables.ChainHookInput
		switch {
		case chain.Table.Name == "firewalld":
			firewalld = true
		case drops && forwards && docker[chain.Table.Family] && chain.Table.Name == "filter":
			// Told of us; see AllowInDocker.
		case drops && forwards:
			found = append(found, Obstacle{name, "drops what it does not know of what is forwarded",
				fmt.Sprintf("nft insert rule %s meta mark and %#x == %#x accept", name, Mark, Mark)})
		case drops && receives:
			found = append(found, Obstacle{name, "drops what it does not know of what is for this host, its name server included",
				fmt.Sprintf("nft insert rule %s iifname %s accept", name, t.Bridge)})
		}
	}
	if firewalld {
		found = append(found, Obstacle{Firewalld, "is firewalld's, which refuses what comes from a device of no zone",
			"firewall-cmd --permanent --zone=trusted --add-interface=" + t.Bridge + " && firewall-cmd --reload"})
	}
	return found, nil
}

var ipFamilies = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}
