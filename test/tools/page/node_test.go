//go:build e2e

package page_test

import (
	"encoding/json"
	"net"
	"net/http"
	"path"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/page"
)

// What the page is told, as docs/reference.md has it. That the provider tells it so is what TestAnswersOfTheProvider is about.
type (
	report struct {
		Version     int     `json:"version"`
		Node        string  `json:"node"`
		Provider    string  `json:"provider"`
		BreakerOpen bool    `json:"breakerOpen,omitempty"`
		Grants      []grant `json:"grants"`
	}
	grant struct {
		ID             string  `json:"id"`
		State          string  `json:"state"`
		Namespace      string  `json:"namespace"`
		Pod            string  `json:"pod"`
		UID            string  `json:"uid"`
		Volume         string  `json:"volume"`
		Class          string  `json:"class"`
		ServiceAccount string  `json:"serviceAccount"`
		Vault          string  `json:"vault"`
		VaultNamespace string  `json:"vaultNamespace,omitempty"`
		AuthMount      string  `json:"authMount"`
		Role           string  `json:"role"`
		TokenSeconds   *int64  `json:"tokenSeconds,omitempty"`
		RenewSeconds   *int64  `json:"renewSeconds,omitempty"`
		Leases         []lease `json:"leases,omitempty"`
		Failures       int     `json:"failures,omitempty"`
		Cause          string  `json:"cause,omitempty"`
		Problem        string  `json:"problem,omitempty"`
	}
	lease struct {
		Path       string `json:"path"`
		Seconds    int64  `json:"seconds"`
		Of         int64  `json:"ofSeconds"`
		Renewed    int64  `json:"renewedSecondsAgo"`
		Superseded bool   `json:"superseded,omitempty"`
	}
	timeline struct {
		Version int     `json:"version"`
		Node    string  `json:"node"`
		Events  []event `json:"events"`
	}
	event struct {
		At        time.Time `json:"at"`
		Namespace string    `json:"namespace"`
		Pod       string    `json:"pod"`
		UID       string    `json:"uid"`
		Volume    string    `json:"volume"`
		Kind      string    `json:"kind"`
		Says      string    `json:"says"`
		Warning   bool      `json:"warning"`
		Trouble   string    `json:"trouble,omitempty"`
		Count     int       `json:"count"`
		Last      time.Time `json:"last"`
	}
)

// node is a provider's page and reports, of what a test makes up.
type node struct {
	t       *testing.T
	addr    string
	reports http.Handler
	srv     *http.Server

	mu     sync.Mutex
	grants []grant
	events []event
	open   bool
	// asked counts what was asked of it.
	asked int
}

// start serves a node with these grants.
func start(t *testing.T, grants ...grant) *node {
	t.Helper()
	n := &node{t: t, grants: grants}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/leases", n.tellLeases)
	mux.HandleFunc("GET /v1/events", n.tellEvents)
	n.reports = mux
	n.serve()
	return n
}

// recorded serves what internal/admin's own tests hold its answers to.
func recorded(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, reports: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, filepath.Join("..", "..", "..", "internal", "admin", "testdata", path.Base(r.URL.Path)+".json"))
	})}
	n.serve()
	return n
}

func (n *node) serve() {
	n.addr = "127.0.0.1:0"
	n.comeBack()
	n.t.Cleanup(n.goAway)
}

func (n *node) url() string { return "http://" + n.addr + "/" }

// goAway ends the provider, and every connection to it.
func (n *node) goAway() { _ = n.srv.Close() }

// comeBack starts it, after the first time at the same address.
func (n *node) comeBack() {
	n.t.Helper()
	l, err := net.Listen("tcp", n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	n.addr = l.Addr().String()
	n.srv = &http.Server{Handler: page.Handler(n.reports), ReadHeaderTimeout: time.Minute}
	go func() { _ = n.srv.Serve(l) }()
}

func (n *node) tellLeases(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	_ = json.NewEncoder(w).Encode(report{
		Version: 1, Node: "worker-3.eu-central-1", Provider: "v0.4.0", BreakerOpen: n.open, Grants: append([]grant{}, n.grants...),
	})
}

func (n *node) tellEvents(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = json.NewEncoder(w).Encode(timeline{Version: 1, Node: "worker-3.eu-central-1", Events: append([]event{}, n.events...)})
}

// answers is how often its grants were asked for.
func (n *node) answers() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

// set changes what it holds.
func (n *node) set(grants ...grant) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.grants = grants
}

func (n *node) openBreaker() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open = true
}

// held is an active grant of a pod's volume, with leases.
func held(id, namespace, pod, volume, role string, leases ...lease) grant {
	return grant{
		ID: id, State: "Active", Namespace: namespace, Pod: pod, UID: "uid of " + pod, Volume: volume, Class: "vault-" + volume, ServiceAccount: role,
		Vault: "https://vault.internal:8200", AuthMount: "kubernetes", Role: role, Leases: leases,
		TokenSeconds: new(seconds(59 * time.Minute)), RenewSeconds: new(seconds(9 * time.Minute)),
	}
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// leased is a lease whose life of ttl was stated this long ago.
func leased(path string, ago, ttl time.Duration) lease {
	return lease{Path: path, Seconds: seconds(ttl - ago), Of: seconds(ttl), Renewed: seconds(ago)}
}

// busy is a node on which a bit of everything happens.
func busy(t *testing.T) *node {
	t.Helper()
	replaced := leased("database/creds/orders-rw", 50*time.Minute, time.Hour)
	replaced.Superseded = true
	failing := held("3", "payments", "settlement-5d8c7b6f9-q2lzn", "db", "settlement", leased("database/creds/settlement", 33*time.Minute, 36*time.Minute))
	failing.Failures, failing.Problem = 4, `renewing "database/creds/settlement": Vault at https://vault-eu.payments:8200 does not answer: dial tcp 10.4.0.17:8200: connect: connection refused`
	failing.Vault, failing.VaultNamespace = "https://vault-eu.payments:8200", "payments"
	partial := held("4", "search", "indexer-0", "certs", "indexer")
	partial.State, partial.Failures, partial.Problem = "Partial", 2, `reading "pki/issue/indexer": permission denied: the role's policy must allow update there`
	revoking := held("5", "shop", "nightly-report-28791340-x7k2p", "db", "report", leased("database/creds/report-ro", 7*time.Minute, 20*time.Minute))
	revoking.State, revoking.Cause = "Revoking", "the pod is gone and kubelet took its volume away"
	superseded := held("6", "shop", "checkout-7d9f8b5c44-m4x9t", "creds", "checkout", leased("database/creds/checkout", 41*time.Minute, time.Hour))
	superseded.State = "Superseded"
	pending := held("7", "shop", "mailer-6c7d9-zz81k", "smtp", "mailer")
	pending.State, pending.TokenSeconds, pending.RenewSeconds = "Pending", nil, nil
	n := start(t,
		held("1", "shop", "orders-6b7f9c9d8-8hs5w", "creds", "orders", leased("database/creds/orders-rw", 4*time.Minute, time.Hour), replaced, leased("rabbitmq/creds/orders", time.Minute, 30*time.Minute)),
		held("2", "shop", "checkout-7d9f8b5c44-m4x9t", "creds", "checkout", leased("database/creds/checkout", 2*time.Minute, time.Hour)),
		failing, partial, revoking, superseded, pending,
		held("8", "search", "gateway-0", "tls", "gateway", leased("pki/issue/gateway", 4*time.Minute, 24*time.Hour)),
		held("9", "billing", "invoice-api-58dd6c7f4b-kk2vd", "aws", "invoice-api", leased("aws/creds/invoice-upload", 11*time.Minute, 15*time.Minute)),
		held("10", "billing", "invoice-api-58dd6c7f4b-kk2vd", "settings", "invoice-api"),
	)
	told := func(ago time.Duration, namespace, pod, volume, kind, trouble, says string, count int) event {
		at := time.Now().Add(-ago)
		return event{At: at, Last: at, Namespace: namespace, Pod: pod, UID: "uid of " + pod, Volume: volume, Kind: kind, Says: says, Warning: trouble != "", Trouble: trouble, Count: count}
	}
	n.events = []event{
		told(26*time.Hour, "search", "gateway-0", "tls", "Mounted", "", "3 files, 1 lease", 1),
		told(58*time.Minute, "shop", "orders-6b7f9c9d8-8hs5w", "creds", "Mounted", "", "4 files, 2 leases", 1),
		told(41*time.Minute, "shop", "checkout-7d9f8b5c44-m4x9t", "creds", "Rotated", "", "shows new credentials of database/creds/checkout; those before run out by themselves", 1),
		told(12*time.Minute, "search", "indexer-0", "certs", "ReadFailed", "PolicyDenied", `reading "pki/issue/indexer": permission denied`, 6),
		told(7*time.Minute, "shop", "nightly-report-28791340-x7k2p", "db", "PodEnded", "", "the pod is gone and kubelet took its volume away", 1),
		told(3*time.Minute, "payments", "settlement-5d8c7b6f9-q2lzn", "db", "RenewalFailed", "VaultUnreachable", "renewing failed: connection refused", 4),
		told(9*time.Second, "billing", "invoice-api-58dd6c7f4b-kk2vd", "aws", "Renewed", "", "aws/creds/invoice-upload, for 15m", 3),
	}
	return n
}

// events have each of these texts wherever an event has one.
func events(texts []string) []event {
	var all []event
	for _, text := range texts {
		all = append(all, event{
			At: time.Now(), Last: time.Now(), Namespace: text, Pod: text, UID: text, Volume: text, Kind: text, Says: text, Warning: true, Count: 1,
		})
	}
	return all
}
