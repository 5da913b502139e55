// Package admin tells, through a socket that only root reaches, what this node holds and what happened to it, and has it given back. It shows
// paths, states and lives, and never a token, an accessor, a lease id or a value.
package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/grant"
)

const (
	leasesPath = "/v1/leases"
	// MaxReport bounds a report that is read, in bytes.
	MaxReport = 64 << 20
)

// reportVersion changes when a field of the report changes its meaning or goes; fields are added without.
const reportVersion = 1

// Report is what is held on one node.
type Report struct {
	Version int `json:"version"`
	// Node is the node's name.
	Node string `json:"node"`
	// Provider is the provider's own version.
	Provider string `json:"provider"`
	// BreakerOpen says that revocations are held back.
	BreakerOpen bool `json:"breakerOpen,omitempty"`
	// Grants are in the order of their pods' names.
	Grants []Grant `json:"grants"`
}

// Grant is one login made for one pod volume.
type Grant struct {
	ID             string `json:"id"`
	State          string `json:"state"`
	Namespace      string `json:"namespace"`
	Pod            string `json:"pod"`
	UID            string `json:"uid"`
	Volume         string `json:"volume"`
	Class          string `json:"class"`
	ServiceAccount string `json:"serviceAccount"`
	Vault          string `json:"vault"`
	VaultNamespace string `json:"vaultNamespace,omitempty"`
	AuthMount      string `json:"authMount"`
	Role           string `json:"role"`
	// TokenSeconds is what is left of the token; absent when there is none.
	TokenSeconds *int64 `json:"tokenSeconds,omitempty"`
	// RenewSeconds is how long it is until the token or a lease is renewed, by plan; absent when nothing is.
	RenewSeconds *int64  `json:"renewSeconds,omitempty"`
	Leases       []Lease `json:"leases,omitempty"`
	// Failures counts the tries to renew or revoke that failed since the last that did not.
	Failures int `json:"failures,omitempty"`
	// Cause says why it is being revoked.
	Cause string `json:"cause,omitempty"`
	// Problem is the last failure; absent when the last try went well.
	Problem string `json:"problem,omitempty"`
	// LeftToExpire says why the end of the pod revokes nothing; absent when it does.
	LeftToExpire string `json:"leftToExpire,omitempty"`
}

// Lease is one lease under the login.
type Lease struct {
	Path string `json:"path"`
	// Seconds is what is left of it, Of the life that Vault stated last, and Renewed how long ago that was. Of is 0 for a life without end.
	Seconds int64 `json:"seconds"`
	Of      int64 `json:"ofSeconds"`
	Renewed int64 `json:"renewedSecondsAgo"`
	// Fixed leases are lengthened by no renewal any more.
	Fixed bool `json:"fixed,omitempty"`
	// Superseded leases were replaced and run out by themselves.
	Superseded bool `json:"superseded,omitempty"`
}

// SocketPath is where the provider that keeps its state in stateDir answers.
func SocketPath(stateDir string) string { return filepath.Join(stateDir, "admin.sock") }

// Provider is what the admin socket tells of and acts on.
type Provider struct {
	Node string
	// Version is the provider's own.
	Version string
	// List returns what is held.
	List func() ([]grant.Grant, error)
	// LeftToExpire says why the end of the pod revokes nothing of a grant; empty when it does.
	LeftToExpire func(grant.Grant) string
	// History remembers what happened.
	History *History
	// BreakerOpen tells whether revocations are held back.
	BreakerOpen func() bool
	// Now reads the clock that grants are kept by.
	Now func() grant.Instant
	// GiveBack has the grants of pods that are over given back; with all also those that running pods use.
	GiveBack func(ctx context.Context, all bool) error
	// RevokePod has all given back that a pod holds, and returns of how many grants that is.
	RevokePod func(namespace, name string) (int, error)
}

// Reports answers questions only: nothing that is asked of it changes anything.
func Reports(p Provider) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+leasesPath, p.tell)
	mux.HandleFunc("GET "+eventsPath, p.events)
	return mux
}

// Handler answers the admin socket. Profiles, which hold names of functions and no data, are where net/http/pprof has them.
func Handler(p Provider) http.Handler {
	mux := Reports(p)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("POST "+drainPath, p.drain)
	mux.HandleFunc("POST "+revokePath, p.revoke)
	return mux
}

func (p Provider) tell(w http.ResponseWriter, _ *http.Request) {
	grants, err := p.List()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(p.report(grants))
}

func (p Provider) report(grants []grant.Grant) Report {
	now := p.Now()
	r := Report{Version: reportVersion, Node: p.Node, Provider: p.Version, BreakerOpen: p.BreakerOpen(), Grants: make([]Grant, 0, len(grants))}
	for _, g := range grants {
		out := Grant{
			ID: g.ID, State: string(g.State), Namespace: g.Pod.Namespace, Pod: g.Pod.Name, UID: g.Pod.UID,
			Volume: g.Volume.Volume, Class: g.Class, ServiceAccount: g.Pod.ServiceAccount,
			Vault: g.Server.Address, VaultNamespace: g.Namespace, AuthMount: g.Auth.Mount, Role: g.Auth.Role,
			Cause: g.Cause, Problem: g.Problem, Failures: g.Failures, LeftToExpire: p.LeftToExpire(g),
		}
		if next := g.NextRenewal(now); next != 0 {
			out.RenewSeconds = new(seconds(max(0, next.Sub(now))))
		}
		if !g.Token.IsZero() {
			out.TokenSeconds = new(seconds(g.Login.Left(now)))
		}
		for _, l := range g.Leases {
			out.Leases = append(out.Leases, Lease{
				Path: l.Read.Path, Superseded: l.Superseded, Fixed: !l.Superseded && l.Term.TTL != 0 && !l.Term.Extends(),
				Seconds: seconds(l.Term.Left(now)), Of: seconds(l.Term.TTL), Renewed: seconds(max(0, now.Sub(l.Term.From))),
			})
		}
		r.Grants = append(r.Grants, out)
	}
	slices.SortFunc(r.Grants, func(a, b Grant) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Pod, b.Pod), strings.Compare(a.Volume, b.Volume), strings.Compare(a.ID, b.ID))
	})
	return r
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// Client returns a client of the provider that keeps its state in stateDir, whatever host its URLs name.
func Client(stateDir string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", SocketPath(stateDir))
	}}}
}

// Fetch asks the provider that keeps its state in stateDir what it holds.
func Fetch(ctx context.Context, stateDir string) (Report, error) {
	return ask[Report](ctx, stateDir, http.MethodGet, leasesPath)
}

func ask[T any](ctx context.Context, stateDir, method, path string) (r T, err error) {
	client := Client(stateDir)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://leasehold"+path, nil)
	if err != nil {
		return r, fmt.Errorf("asking the provider: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return r, fmt.Errorf("asking the provider (is it running on this node, and is %s its --state-dir?): %w", stateDir, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return r, fmt.Errorf("asking the provider: it answered %s: %s", resp.Status, strings.TrimSpace(string(why)))
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, MaxReport)).Decode(&r); err != nil {
		return r, fmt.Errorf("reading the provider's answer: %w", err)
	}
	return r, nil
}
