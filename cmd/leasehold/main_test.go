package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// asLeasehold makes the test binary the program itself, so that tests meet it as a process: with exit codes and signals.
const asLeasehold = "LEASEHOLD_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asLeasehold) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// command is a run of the program that is killed when the test ends, if not over before.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = append(os.Environ(), asLeasehold+"=1", "NODE_NAME=")
	return c
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		args   string
		code   int
		stdout string // a part of it; empty for nothing at all
		stderr string
	}{
		{"version", 0, "dev\n", ""},
		{"help", 0, "usage: leasehold [command] [flags]", ""},
		{"leases -h", 0, "", "-state-dir folder"},
		{"serve --help", 0, "", "-vault-tls-ca-cert path"},
		{"", 2, "", "--node-name or the environment variable NODE_NAME must name this node"},
		{"serve --node-name=n more", 2, "", `unexpected argument "more"`},
		{"--nod-name=n", 2, "", "flag provided but not defined: -nod-name"},
		{"--orphan-ttl=5 --node-name=n", 2, "", "invalid value"},
		{"revok", 2, "", `there is no command "revok"`},
		{"leases -o yaml", 2, "", "-o must be table or json"},
		{"leases --state-dir " + dir, 1, "", "is " + dir + " its --state-dir?"},
		{"--node-name=n --allow-disk-state --kubeconfig=/nonexistent --state-dir=" + dir, 1, "", "finding the Kubernetes API"},
		{"-node-name n -allow-disk-state=true -kubeconfig /nonexistent -state-dir " + dir, 1, "", "finding the Kubernetes API"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			c := command(t, strings.Fields(test.args)...)
			var stdout, stderr bytes.Buffer
			c.Stdout, c.Stderr = &stdout, &stderr
			var exit *exec.ExitError
			if err := c.Run(); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := c.ProcessState.ExitCode(); got != test.code {
				t.Errorf("exit code %d, want %d", got, test.code)
			}
			for _, stream := range []struct{ name, got, want string }{{"stdout", stdout.String(), test.stdout}, {"stderr", stderr.String(), test.stderr}} {
				if !strings.Contains(stream.got, stream.want) || (stream.want == "") != (stream.got == "") {
					t.Errorf("%s %q\nwant %q", stream.name, stream.got, stream.want)
				}
			}
		})
	}
}

const versionKey = "the key of object versions"

// kubeconfig leads to an API server that knows of the version key's Secret and of one pod, and makes it a token. asked is called before
// it answers.
func kubeconfig(t *testing.T, dir, jwt string, asked func(*http.Request)) string {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, object := range map[string]any{
		"GET /api/v1/namespaces/leasehold/secrets/" + defaultKeySecret: corev1.Secret{Data: map[string][]byte{"key": []byte(versionKey)}},
		"GET /api/v1/namespaces/shop/pods/app": corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app", UID: "0f8a-11"}, Spec: corev1.PodSpec{ServiceAccountName: "app-sa"}},
		"POST /api/v1/namespaces/shop/serviceaccounts/app-sa/token": authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: jwt}},
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			asked(r)
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(object)
		})
	}
	api := httptest.NewServer(mux)
	t.Cleanup(api.Close)
	path := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c",
		"contexts":[{"name":"c","context":{"cluster":"c","user":"u","namespace":"leasehold"}}],"users":[{"name":"u","user":{}}],
		"clusters":[{"name":"c","cluster":{"server":%q}}]}`, api.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// mountRequest is a Mount of a pod to which kubelet sends no token.
func mountRequest(t *testing.T) *v1alpha1.MountRequest {
	t.Helper()
	attributes, err := json.Marshal(map[string]string{
		"roleName":                               "my-app-role",
		"objects":                                "- {objectName: user, secretPath: database/creds/my-app, secretKey: username}",
		"csi.storage.k8s.io/pod.name":            "app",
		"csi.storage.k8s.io/pod.namespace":       "shop",
		"csi.storage.k8s.io/pod.uid":             "0f8a-11",
		"csi.storage.k8s.io/serviceAccount.name": "app-sa",
	})
	if err != nil {
		t.Fatal(err)
	}
	return &v1alpha1.MountRequest{
		Attributes: string(attributes), Secrets: "{}", Permission: "420",
		TargetPath: "/var/lib/kubelet/pods/0f8a-11/volumes/kubernetes.io~csi/creds/mount",
	}
}

// TestServe runs the whole program, with an environment that would mislead Vault's client library: a volume is mounted with a token
// that had to be requested, the lease is listed, and a SIGTERM ends it without giving anything back.
func TestServe(t *testing.T) {
	v := vaulttest.New(t)
	v.Role("my-app-role", vaulttest.Role{TTL: time.Hour})
	v.Dynamic("database/creds/my-app", vaulttest.Dynamic{TTL: time.Hour})
	dir, err := os.MkdirTemp("", "leasehold-") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	jwt := v.JWT("shop", "app-sa", "app")
	socket := filepath.Join(dir, "vault.sock")
	var first sync.Once
	early := func(r *http.Request) {
		first.Do(func() {
			if _, err := os.Stat(socket); err == nil {
				t.Errorf("Mounts are taken before the first request, %s", r.URL)
			}
		})
	}
	serve := command(t, "--node-name=node-1", "--endpoint", socket, "--state-dir", dir, "--allow-disk-state", "--health-addr=127.0.0.1:0",
		"--kubelet-dir", dir, "--kubeconfig", kubeconfig(t, dir, jwt, early), "--vault-addr", v.Serve(t)+"/", "--log-level=debug")
	serve.Env = append(serve.Env, "VAULT_ADDR=http://127.0.0.1:1", "VAULT_NAMESPACE=canary", "VAULT_TOKEN=canary", "VAULT_MAX_RETRIES=nonsense")
	var log bytes.Buffer
	serve.Stderr = &log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}

	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := v1alpha1.NewCSIDriverProviderClient(conn).Mount(ctx, mountRequest(t), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if users := v.Users(); len(users) != 1 || len(resp.GetFiles()) != 1 || string(resp.GetFiles()[0].GetContents()) != users[0].Name {
		t.Errorf("%d files for users %v", len(resp.GetFiles()), users)
	}
	for _, r := range v.Requests() {
		if r.Header.Get("X-Vault-Namespace") != "" {
			t.Errorf("%s %s obeys VAULT_NAMESPACE", r.Method, r.Path)
		}
	}
	for _, output := range []string{"table", "json"} {
		text, err := command(t, "leases", "-o", output, "--state-dir", dir).Output()
		if err != nil || !strings.Contains(string(text), "database/creds/my-app") {
			t.Errorf("leases -o %s: %v\n%s", output, err, text)
		}
	}

	if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := serve.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, log.String())
	}
	if got := len(v.Users()); got != 1 {
		t.Errorf("%d users after the end of the provider; the pod still lives", got)
	}
	ledger, err := store.Open(t.Context(), store.Config{Dir: dir, AllowDisk: true, Now: bootTime})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(ledger.VersionKey()); got != versionKey {
		t.Errorf("object versions are keyed by %q, want the Secret's", got)
	}
	if err := ledger.Close(); err != nil {
		t.Error(err)
	}
	for _, text := range append(v.Secrets(), jwt, versionKey, "canary") {
		if strings.Contains(log.String(), text) {
			t.Errorf("the log holds %q:\n%s", text, log.String())
		}
	}
	if !strings.Contains(log.String(), "logged in") {
		t.Errorf("the log at debug level is silent:\n%s", log.String())
	}
}
