package spec

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	// DefaultRefresh is how often a plain secret is read again at most where nothing else is said.
	DefaultRefresh = 2 * time.Minute
	// shortestRefresh is below the pace of republishes; longestRefresh keeps sums of instants from overflowing.
	shortestRefresh, longestRefresh = 10 * time.Second, 365 * 24 * time.Hour

	// defaultRenewAt is in percent.
	defaultRenewAt = 70
	// earliestRenewAt and latestRenewAt leave something to use and something to replace it in.
	earliestRenewAt, latestRenewAt = 10, 95
)

// Care says how the answer of one read is looked after. The zero value says nothing.
type Care struct {
	// Refresh is how often what Vault may change at any time is read again at most.
	Refresh time.Duration
	// RenewAt is the share of its life, in percent, after which a certificate is issued anew.
	RenewAt int
	// RevokeOnEnd: the certificates that the read issues are revoked when the pod ends.
	RevokeOnEnd bool
}

// Care is what holds for a read, complete: of what its objects say the smallest, so that none of them waits for another.
func (s *Spec) Care(r Read) Care {
	var c Care
	for _, o := range s.Objects {
		if o.Read == r {
			c.Refresh = smallest(c.Refresh, o.Care.Refresh)
			c.RenewAt = smallest(c.RenewAt, o.Care.RenewAt)
			c.RevokeOnEnd = c.RevokeOnEnd || o.Care.RevokeOnEnd
		}
	}
	c.Refresh = cmp.Or(c.Refresh, s.Refresh, DefaultRefresh)
	c.RenewAt = cmp.Or(c.RenewAt, defaultRenewAt)
	return c
}

// smallest of two is the smaller one that is said.
func smallest[T time.Duration | int](a, b T) T {
	if a == 0 || b == 0 {
		return a + b
	}
	return min(a, b)
}

// oneVerb gives reads the same method that differ in nothing but PUT and POST, which Vault takes for one: a certificate and its key must
// not come from two issues.
func oneVerb(objects []Object) {
	var first map[Read]string // by what is left without the method
	for i := range objects {
		r := &objects[i].Read
		if r.Method == "GET" {
			continue
		}
		if first == nil {
			first = make(map[Read]string)
		}
		rest := *r
		rest.Method = ""
		if first[rest] == "" {
			first[rest] = r.Method
		}
		r.Method = first[rest]
	}
}

// care reads what an item says of how its read is looked after.
func (p *parser) care(it *item, r Read, check func(*yaml.Node, error), warn func(*yaml.Node, string)) (c Care) {
	text, err := scalar(refreshInterval, &it.RefreshInterval)
	if err == nil {
		c.Refresh, err = refresh(text)
	}
	check(&it.RefreshInterval, err)
	c.RenewAt, err = renewAt(&it.RenewAt)
	check(&it.RenewAt, err)
	c.RevokeOnEnd, err = revokeOnEnd(&it.RevokeOnEnd, r)
	check(&it.RevokeOnEnd, err)
	switch reads := r.Method == "GET"; {
	case c.Refresh != 0 && !reads:
		warn(&it.RefreshInterval, "refreshInterval has no effect with method "+r.Method+": what a write made is not made again for a refresh")
	case c.RenewAt != 0 && reads:
		warn(&it.RenewAt, "renewAt has no effect with method GET: certificates are issued with PUT")
	}
	if c.RevokeOnEnd && p.params[onPodEnd] == string(ExpireOnPodEnd) {
		warn(&it.RevokeOnEnd, "revokeOnEnd has no effect with onPodEnd: expire")
	}
	return c
}

// refresh reads the parameter of that kind; zero when it is not set.
func (p *parser) refresh() time.Duration {
	d, err := refresh(p.params[refreshInterval])
	if err != nil {
		p.faultf(p.at(refreshInterval), "%v", err)
	}
	return d
}

// refresh reads how often to read again; zero for the empty text.
func refresh(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	duration := text
	if _, err := strconv.ParseUint(text, 10, 32); err == nil {
		duration += "s"
	}
	d, err := time.ParseDuration(duration)
	if err != nil || d < shortestRefresh || d > longestRefresh {
		return 0, fmt.Errorf("refreshInterval %s is not a duration such as 90s or 5m, or a number of seconds, of at least %s and at most %dh",
			Quote(text), shortestRefresh, longestRefresh/time.Hour)
	}
	return d, nil
}

func renewAt(n *yaml.Node) (percent int, err error) {
	text, err := scalar("renewAt", n)
	if err != nil || text == "" {
		return 0, err
	}
	percent, err = strconv.Atoi(strings.TrimSuffix(text, "%"))
	if err != nil || percent < earliestRenewAt || percent > latestRenewAt {
		return 0, fmt.Errorf("renewAt %s is not a share of the certificate's life from %d%% to %d%%", Quote(text), earliestRenewAt, latestRenewAt)
	}
	return percent, nil
}

func revokeOnEnd(n *yaml.Node, r Read) (bool, error) {
	revoke, err := boolean("revokeOnEnd", n)
	if err == nil && revoke && r.Path != "" && (r.Method == "GET" || r.Issuer() == "") {
		return false, errors.New("revokeOnEnd is for certificates that a PKI engine issues: the method must be PUT, and secretPath MOUNT/issue/ROLE, MOUNT/sign/ROLE or MOUNT/sign-verbatim/ROLE")
	}
	return revoke, err
}

// Issuer is the mount of the PKI engine whose certificates the read issues, by the form of its path; empty for other paths.
func (r Read) Issuer() string {
	path := strings.Split(r.Path, "/")
	n := len(path)
	switch {
	case n > 2 && slices.Contains([]string{"issue", "sign", "sign-verbatim"}, path[n-2]):
		n -= 2 // and the role
	case n > 1 && path[n-1] == "sign-verbatim":
		n--
	default:
		return ""
	}
	if n > 2 && path[n-2] == "issuer" { // of several issuers of one mount
		n -= 2
	}
	return strings.Join(path[:n], "/")
}
