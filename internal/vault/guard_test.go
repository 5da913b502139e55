package vault_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// forwarded counts what came to a proxy of the node. net/http reads its address once, and asks it for nothing on loopback.
var forwarded atomic.Int64

func TestMain(m *testing.M) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		forwarded.Add(1)
		w.WriteHeader(http.StatusNoContent)
	}))
	_ = os.Setenv("HTTP_PROXY", proxy.URL)
	os.Exit(m.Run())
}

func revoke(t *testing.T, s spec.Server) error {
	t.Helper()
	c, err := new(vault.Pool).Client(s, "shop")
	if err != nil {
		return err
	}
	return c.RevokeSelf(t.Context(), vault.Session{Token: secret.New("t")})
}

// A name can lead to the node itself, whatever its text says.
func TestWhatATenantNamesIsNotDialledOnTheNode(t *testing.T) {
	var reached atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached.Add(1)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer srv.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "http://"), ":")
	for _, host := range []string{"localhost", "127.0.0.1", "[::ffff:127.0.0.1]"} {
		s := spec.Server{Address: "http://" + host + ":" + port, Guarded: true}
		err := revoke(t, s)
		var e *vault.Error
		if !errors.As(err, &e) || e.Kind != vault.Unusable || e.Repeatable() || e.Executed() || !strings.Contains(err.Error(), "--allow-vault-addr") {
			t.Errorf("%s: %v", host, err)
		}
		if reached.Load() != 0 {
			t.Errorf("%s was reached", host)
		}
	}
	if err := revoke(t, spec.Server{Address: "http://localhost:" + port}); err != nil || reached.Load() != 1 {
		t.Errorf("the operator's own: %v", err)
	}
}

// What goes through a proxy is dialled by it: its own address is the operator's choice.
func TestProxyOfTheNode(t *testing.T) {
	before := forwarded.Load()
	if err := revoke(t, spec.Server{Address: "http://vault.example", Guarded: true}); err != nil || forwarded.Load() != before+1 {
		t.Errorf("got %v", err)
	}
}

func TestNoLinkLeadsOutOfTheTLSFolder(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "open")
	for _, path := range []string{folder, filepath.Join(folder, "..data"), filepath.Join(folder, "sub")} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cert, _ := pair(t, 1)
	outside := filepath.Join(dir, "outside.crt")
	write(t, outside, cert)
	write(t, filepath.Join(folder, "..data", "ca.crt"), cert)
	for link, target := range map[string]string{"ca.crt": "..data/ca.crt", "sub/up.crt": "../../outside.crt", "absolute.crt": outside, "dir": ".."} {
		if err := os.Symlink(target, filepath.Join(folder, link)); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(folder, name) }
	for name, tt := range map[string]struct {
		server  spec.Server
		refused bool
	}{
		"a file":            {spec.Server{CACert: at("..data/ca.crt")}, false},
		"a link inside":     {spec.Server{CACert: at("ca.crt")}, false},
		"a link out":        {spec.Server{CACert: at("sub/up.crt")}, true},
		"an absolute link":  {spec.Server{CACert: at("absolute.crt")}, true},
		"a folder out":      {spec.Server{CADirectory: at("dir")}, true},
		"a link in it":      {spec.Server{CADirectory: at("sub")}, true},
		"the operator's CA": {spec.Server{CACert: outside}, false},
	} {
		t.Run(name, func(t *testing.T) {
			tt.server.Address, tt.server.TLSFolder = "https://vault.test", folder
			_, err := new(vault.Pool).Client(tt.server, "shop")
			if (err != nil) != tt.refused || err != nil && (vault.KindOf(err) != vault.Unusable || !strings.Contains(err.Error(), "escapes")) {
				t.Errorf("got %v", err)
			}
		})
	}
}
