//nolint:forbidigo // sleeps inside synctest bubbles only
package vault_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-csi/leasehold/internal/secret"
	"github.com/leasehold-csi/leasehold/internal/spec"
	"github.com/leasehold-csi/leasehold/internal/vault"
)

// pair is a self-signed certificate and its key, in PEM.
func pair(t *testing.T, serial int64) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("CERTIFICATE", der), pemOf("PRIVATE KEY", raw)
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tlsServer answers 204 and notes the serial number of the certificate that it was shown.
type tlsServer struct {
	*httptest.Server
	serial atomic.Int64
	closed chan struct{} // receives once per connection that was closed
}

// newTLSServer keeps connections only when told to: in a bubble no time passes while one is open.
func newTLSServer(t *testing.T, keep bool) *tlsServer {
	s := &tlsServer{closed: make(chan struct{}, 100)}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.serial.Store(0)
		if shown := r.TLS.PeerCertificates; len(shown) > 0 {
			s.serial.Store(shown[0].SerialNumber.Int64())
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			s.closed <- struct{}{}
		}
	}
	s.Config.SetKeepAlivesEnabled(keep)
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *tlsServer) ca() string { return pemOf("CERTIFICATE", s.Certificate().Raw) }

// call makes a call with the pool's client of the moment and returns that.
func call(t *testing.T, p *vault.Pool, s spec.Server) (*vault.Client, vault.Kind) {
	t.Helper()
	c, err := p.Client(s, "shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RevokeSelf(t.Context(), vault.Session{Token: secret.New("t")}); err != nil {
		return c, vault.KindOf(err)
	}
	return c, 0
}

// waited is longer than the time between two looks at the files.
const waited = 6 * time.Second

func TestReplacedCAIsNoticed(t *testing.T) {
	srv := newTLSServer(t, false)
	dir := t.TempDir()
	other, _ := pair(t, 1)
	synctest.Test(t, func(t *testing.T) {
		var p vault.Pool
		s := spec.Server{Address: srv.URL, CACert: filepath.Join(dir, "ca.crt")}
		write(t, s.CACert, other)
		first, kind := call(t, &p, s)
		if kind != vault.Distrusted {
			t.Errorf("trusted by another CA: kind %d", kind)
		}
		time.Sleep(time.Hour)
		if c, _ := call(t, &p, s); c != first {
			t.Error("a new client although nothing changed")
		}
		write(t, s.CACert, srv.ca())
		if c, _ := call(t, &p, s); c != first {
			t.Error("the files are looked at at each call")
		}
		time.Sleep(waited)
		second, kind := call(t, &p, s)
		if second == first || kind != 0 {
			t.Errorf("the new CA is not used: kind %d", kind)
		}
		write(t, s.CACert, "half a certifi")
		time.Sleep(waited)
		if c, kind := call(t, &p, s); c != second || kind != 0 {
			t.Errorf("what cannot be read took the place of what worked: kind %d", kind)
		}
	})
}

// A pair is rotated file by file: between the two the old one is still in use.
func TestReplacedClientCertificateIsNoticed(t *testing.T) {
	srv := newTLSServer(t, false)
	dir := t.TempDir()
	cert1, key1 := pair(t, 1)
	cert2, key2 := pair(t, 2)
	synctest.Test(t, func(t *testing.T) {
		var p vault.Pool
		s := spec.Server{Address: srv.URL, SkipVerify: true, ClientCert: filepath.Join(dir, "tls.crt"), ClientKey: filepath.Join(dir, "tls.key")}
		write(t, s.ClientCert, cert1)
		write(t, s.ClientKey, key1)
		shows := func(when string, want int64) *vault.Client {
			t.Helper()
			c, kind := call(t, &p, s)
			if got := srv.serial.Load(); got != want || kind != 0 {
				t.Errorf("%s: certificate %d is shown, want %d; kind %d", when, got, want, kind)
			}
			return c
		}
		first := shows("at first", 1)
		write(t, s.ClientCert, cert2)
		time.Sleep(waited)
		shows("half replaced", 1)
		write(t, s.ClientKey, key2)
		time.Sleep(waited)
		shows("replaced", 2)
		if err := first.RevokeSelf(t.Context(), vault.Session{Token: secret.New("t")}); err != nil || srv.serial.Load() != 1 {
			t.Errorf("whoever still holds the old client cannot use it: %v", err)
		}
	})
}

// The pod's certificate is shown instead of the provider's own, and to each pod's the connections are its own.
func TestPairOfThePod(t *testing.T) {
	srv := newTLSServer(t, false)
	dir := t.TempDir()
	own := spec.Server{Address: srv.URL, SkipVerify: true, ClientCert: filepath.Join(dir, "tls.crt"), ClientKey: filepath.Join(dir, "tls.key")}
	cert, key := pair(t, 1)
	write(t, own.ClientCert, cert)
	write(t, own.ClientKey, key)
	var p vault.Pool
	for serial := range int64(3) {
		s := own
		if serial != 1 {
			cert, key := pair(t, serial)
			s.Pair = secret.New(cert + key)
		}
		if _, kind := call(t, &p, s); kind != 0 || srv.serial.Load() != serial {
			t.Errorf("certificate %d is shown, want %d; kind %d", srv.serial.Load(), serial, kind)
		}
	}
}

// After a change only the new client's connection is left.
func TestConnectionsOfAReplacedClientAreClosed(t *testing.T) {
	srv := newTLSServer(t, true)
	dir := t.TempDir()
	var p vault.Pool
	s := spec.Server{Address: srv.URL, SkipVerify: true, ClientCert: filepath.Join(dir, "tls.crt"), ClientKey: filepath.Join(dir, "tls.key")}
	for serial := range int64(2) {
		cert, key := pair(t, serial)
		write(t, s.ClientCert, cert)
		write(t, s.ClientKey, key)
		p.LookNow()
		if _, kind := call(t, &p, s); kind != 0 || srv.serial.Load() != serial {
			t.Fatalf("certificate %d is shown, want %d; kind %d", srv.serial.Load(), serial, kind)
		}
	}
	select {
	case <-srv.closed:
	case <-time.After(20 * time.Second):
		t.Error("the old client's connection stays open")
	}
}

// A mounted ConfigMap: the files are links into a folder behind a link, which is swapped.
func TestFolderOfCAs(t *testing.T) {
	srv := newTLSServer(t, false)
	dir := t.TempDir()
	other, _ := pair(t, 1)
	synctest.Test(t, func(t *testing.T) {
		var p vault.Pool
		s := spec.Server{Address: srv.URL, CADirectory: dir}
		version := func(name, ca string) {
			t.Helper()
			if err := os.Mkdir(filepath.Join(dir, ".."+name), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, ".."+name, "ca.crt"), ca)
			if err := os.Symlink(".."+name, filepath.Join(dir, "..tmp")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
				t.Fatal(err)
			}
		}
		version("1", other)
		if err := os.Symlink("..data/ca.crt", filepath.Join(dir, "ca.crt")); err != nil {
			t.Fatal(err)
		}
		if _, kind := call(t, &p, s); kind != vault.Distrusted {
			t.Errorf("trusted by another CA: kind %d", kind)
		}
		version("2", srv.ca())
		time.Sleep(waited)
		if _, kind := call(t, &p, s); kind != 0 {
			t.Errorf("the swapped folder is not noticed: kind %d", kind)
		}
		if err := os.Remove(filepath.Join(dir, "ca.crt")); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "other.crt"), other)
		time.Sleep(waited)
		if _, kind := call(t, &p, s); kind != vault.Distrusted {
			t.Errorf("a CA that is gone is still trusted: kind %d", kind)
		}
	})
}

func TestUnusableTLSFiles(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	cert, key := pair(t, 1)
	write(t, path("crt"), cert)
	write(t, path("key"), key)
	write(t, path("large"), strings.Repeat("x", 1<<20+1))
	write(t, path("canary"), "canary")
	for _, folder := range []string{"empty", "crowded"} {
		if err := os.Mkdir(path(folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1025 {
		write(t, path("crowded/"+strings.Repeat("x", i%100)+string(rune('a'+i/100))), "")
	}
	if err := syscall.Mkfifo(path("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		server spec.Server
		want   string
	}{
		"missing file":      {spec.Server{CACert: path("nowhere")}, "reading " + path("nowhere") + ": no such file"},
		"a device":          {spec.Server{CACert: "/dev/zero"}, "it is not a plain file"},
		"a pipe":            {spec.Server{CACert: path("pipe")}, "it is not a plain file"},
		"a folder":          {spec.Server{CACert: dir}, "it is not a plain file"},
		"a large file":      {spec.Server{CACert: path("large")}, "it is larger than 1 MiB"},
		"no certificate":    {spec.Server{CACert: path("canary")}, "no certificate is in it"},
		"no folder":         {spec.Server{CADirectory: path("crt")}, "not a directory"},
		"a pipe as folder":  {spec.Server{CADirectory: path("pipe")}, "not a directory"},
		"an empty folder":   {spec.Server{CADirectory: path("empty")}, "no file is in it"},
		"a crowded folder":  {spec.Server{CADirectory: path("crowded")}, "more than 1024 files"},
		"other in a folder": {spec.Server{CADirectory: dir}, "no certificate is in it"},
		"no key":            {spec.Server{ClientCert: path("crt"), ClientKey: path("canary")}, "pairing"},
		"no key of a pod":   {spec.Server{Pair: secret.New(cert + "canary")}, "pairing tls.crt and tls.key of the pod's nodePublishSecretRef: "},
	} {
		t.Run(name, func(t *testing.T) {
			tt.server.Address = "https://vault.test"
			_, err := new(vault.Pool).Client(tt.server, "shop")
			if vault.KindOf(err) != vault.Unusable || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
			if err != nil && tt.server.CACert == path("canary") && strings.Count(err.Error(), "canary") != strings.Count(path("canary"), "canary") {
				t.Errorf("the error holds what is in the file: %v", err)
			}
		})
	}
}
