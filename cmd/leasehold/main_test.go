package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/fleet/fleettest"
	"github.com/leasehold-csi/leasehold/internal/spec"
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
	if err := os.Mkdir(filepath.Join(dir, "pods"), 0o700); err != nil {
		t.Fatal(err)
	}
	classes := filepath.Join(dir, "classes.yaml")
	if err := os.WriteFile(classes, []byte("kind: SecretProviderClass\nmetadata: {name: c}\nspec: {provider: vault, parameters: {}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	place := " --endpoint " + dir + "/vault.sock --kubelet-dir " + dir + " --allow-disk-state --state-dir=" + dir
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
		{"--vault-addr=vault:8200 --node-name=n", 2, "", "--vault-addr cannot be used: it must be http:// or https:// with a host, or unix://"},
		{"--allow-vault-addr=vault --node-name=n", 2, "", "-allow-vault-addr: it must be http:// or https://"},
		{"--allow-vault-namespace=[ --node-name=n", 2, "", "-allow-vault-namespace: syntax error in pattern"},
		{"--ui-addr=:8081 --node-name=n", 2, "", "-ui-addr: it must be a loopback address"},
		{"--allow-tls-dir=tls --node-name=n", 2, "", "-allow-tls-dir: it is not an absolute path"},
		{"revok", 2, "", `there is no command "revok"`},
		{"leases -o xml", 2, "", "-o must be one of table, wide, json, yaml"},
		{"revoke --pod app", 2, "", "--pod must be namespace/name"},
		{"revoke --pod shop/app --state-dir " + dir, 1, "", "is " + dir + " its --state-dir?"},
		{"drain -o yaml", 2, "", "-o must be table or json"},
		{"drain --provider-namespace elsewhere", 2, "", "--kubeconfig and --provider-namespace are for --all-nodes"},
		{"leases --kubeconfig /nonexistent", 2, "", "--kubeconfig and --provider-namespace are for --all-nodes"},
		{"leases --all-nodes --kubeconfig /nonexistent", 1, "", "finding the Kubernetes API"},
		{"drain --force --leave", 2, "", "--force and --leave exclude each other"},
		{"drain --state-dir " + dir, 1, "", "is " + dir + " its --state-dir?"},
		{"explain", 2, "", "name the pod as namespace/name"},
		{"explain app -o json", 2, "", "name the pod as namespace/name"},
		{"explain shop/app more", 2, "", `unexpected argument "more"`},
		{"explain -o xml shop/app", 2, "", "-o must be text or json"},
		{"explain shop/app --state-dir " + dir, 1, "", "is " + dir + " its --state-dir?"},
		{"leases --state-dir " + dir, 1, "", "is " + dir + " its --state-dir?"},
		{"--node-name=n --kubeconfig=/nonexistent" + place, 1, "", "finding the Kubernetes API"},
		{"-node-name n -kubeconfig /nonexistent" + strings.ReplaceAll(place, "--", "-"), 1, "", "finding the Kubernetes API"},

		{"validate", 2, "", "-f must name a file"},
		{"validate -f /nonexistent", 2, "", "no such file"},
		{"validate -f " + classes + " -o xml", 2, "", "-o must be text or json"},
		{"validate -f ../../docs/examples/vault-db-creds.yaml", 0, "", ""},
		{"validate -f " + classes, 1, classes + ":3: fault: c: roleName is missing", ""},
		{"validate -f " + classes + " -o json", 1, `"level": "fault"`, ""},
		{"validate -f ../../docs/examples/vault-db-creds.yaml --diff", 0, "change: ", ""},

		// the existing provider's
		{"-debug -cache-size=10 -log-level trace -vault-addr=http://v:8200 -node-name n -kubeconfig /nonexistent" + place, 1, "", "--cache-size does nothing"},
		{"--debug --openbao-addr http://b:8200 --node-name n --kubeconfig /nonexistent" + place, 1, "", "say --log-level=debug"},
		{"-version", 0, "dev\n", ""},
		{"-version -output json", 0, `{"goVersion":"go`, ""},
		{"--version --output=json-pretty", 0, "{\n  \"goVersion\"", ""},
		{"version --output yaml", 0, "version: dev\n", ""},
		{"-version -output xml", 2, "", "--output should be one of: 'yaml', 'json', 'json-pretty'"},

		// what the provider's pod must mount, each in one sentence
		{"--node-name=n --kubelet-dir " + dir + " --endpoint " + dir + "/none/vault.sock", 1, "", "--endpoint: the folder " + dir + "/none is not there"},
		{"--node-name=n --kubelet-dir=/k --no-kubelet-dir", 2, "", "--kubelet-dir and --no-kubelet-dir exclude each other"},
		{"--node-name=n --no-kubelet-dir --kubeconfig=/nonexistent --endpoint " + dir + "/vault.sock --allow-disk-state --state-dir=" + dir, 1, "", "finding the Kubernetes API"},
		{"--node-name=n --endpoint " + dir + "/vault.sock --kubelet-dir " + dir + "/pods", 1, "", "--kubelet-dir: the folder " + dir + "/pods/pods is not there"},
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

// free is a loopback address that nobody listens at.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// curl returns the body of an answer, whatever its code.
func curl(t *testing.T, method, url string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// What a class may name depends on whether --vault-addr was given.
func TestFlagsBecomeRules(t *testing.T) {
	for _, test := range []struct {
		args string
		want spec.Rules
	}{
		{"", spec.Rules{}},
		{"--vault-addr=https://vault", spec.Rules{DefaultOnly: true}},
		{"--vault-addr=" + defaultAddress, spec.Rules{DefaultOnly: true}},
		{"--vault-addr=", spec.Rules{}},
		{"--allow-vault-namespace=/a/ --allow-vault-namespace=b --allow-tls-dir=/x//y --allow-tls-dir=/z",
			spec.Rules{Namespaces: []string{"a", "b"}, TLSFolders: []string{"/x/y", "/z"}}},
	} {
		o, err := parseServe(append(strings.Fields(test.args), "--node-name=n"), io.Discard)
		if got := o.vault.Rules; err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, %v", test.args, got, err)
		}
	}
	o, err := parseServe(strings.Fields("--node-name=n --allow-vault-addr=https://a --allow-vault-addr=https://b"), io.Discard)
	if err != nil || len(o.vault.Rules.Addresses) != 2 {
		t.Errorf("%+v, %v", o.vault.Rules, err)
	}
}

// mountRequest is a Mount for a volume of a class for a provider; a jwt is what kubelet sends for its audience, empty for none.
func mountRequest(t *testing.T, provider, jwt string) *v1alpha1.MountRequest {
	t.Helper()
	tokens := ""
	if jwt != "" {
		tokens = `{"` + provider + `":{"token":"` + jwt + `"}}`
	}
	attributes, err := json.Marshal(map[string]string{
		"roleName":                                 "my-app-role",
		"objects":                                  "- {objectName: user, secretPath: database/creds/my-app, secretKey: username}",
		"csi.storage.k8s.io/pod.name":              "app",
		"csi.storage.k8s.io/pod.namespace":         "shop",
		"csi.storage.k8s.io/pod.uid":               "0f8a-11",
		"csi.storage.k8s.io/serviceAccount.name":   "app-sa",
		"csi.storage.k8s.io/serviceAccount.tokens": tokens,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &v1alpha1.MountRequest{
		Attributes: string(attributes), Secrets: "{}", Permission: "420",
		TargetPath: "/var/lib/kubelet/pods/0f8a-11/volumes/kubernetes.io~csi/" + provider + "/mount",
	}
}

// TestTakenAway: after a drain that left nothing the end of the process leaves an empty lock; any other end leaves what the next one
// takes over.
func TestTakenAway(t *testing.T) {
	for drained, want := range map[bool][]string{true: {"lock"}, false: {"admin.sock", "leasehold.db", "lock", "reserve", "vault.sock"}} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "pods"), 0o700); err != nil {
			t.Fatal(err)
		}
		config := kubeconfig(t, t.TempDir(), "", func(*http.Request) {})
		serve := command(t, "--node-name=node-1", "--endpoint", filepath.Join(dir, "vault.sock"), "--state-dir", dir, "--allow-disk-state", "--health-addr=127.0.0.1:0",
			"--kubelet-dir", dir, "--kubeconfig", config)
		var log bytes.Buffer
		serve.Stderr = &log
		if err := serve.Start(); err != nil {
			t.Fatal(err)
		}
		awaitServing(t, filepath.Join(dir, "vault.sock"))
		if drained {
			text, err := command(t, "drain", "--state-dir", dir).CombinedOutput()
			if err != nil || !strings.HasPrefix(string(text), "Nothing is held on node node-1") {
				t.Errorf("drain: %v\n%s", err, text)
			}
		}
		if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := serve.Wait(); err != nil {
			t.Fatalf("after SIGTERM: %v\n%s", err, log.String())
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, entry := range entries {
			if entry.Name() != "pods" {
				left = append(left, entry.Name())
			}
		}
		if !slices.Equal(left, want) {
			t.Errorf("drained %t: there are %q, want %q", drained, left, want)
		}
	}
}

// awaitServing waits until somebody answers at a socket.
func awaitServing(t *testing.T, socket string) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := v1alpha1.NewCSIDriverProviderClient(conn).Version(ctx, &v1alpha1.VersionRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
}

// silent is the address of a server that takes connections and never answers.
func silent(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

// TestServe runs the whole program, with an environment that would mislead Vault's client library, and traces that nobody takes: a volume is
// mounted with a token
// that had to be requested, another, at OpenBao's socket, with kubelet's, the leases are listed, and a SIGTERM ends it without giving
// anything back.
func TestServe(t *testing.T) {
	v := vaulttest.New(t)
	v.Role("my-app-role", vaulttest.Role{TTL: time.Hour})
	v.Dynamic("database/creds/my-app", vaulttest.Dynamic{TTL: time.Hour})
	dir, err := os.MkdirTemp("", "leasehold-") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "pods"), 0o700); err != nil {
		t.Fatal(err)
	}
	jwt := v.JWT("shop", "app-sa", "app")
	endpoint := func(provider string) string { return filepath.Join(dir, provider+".sock") }
	var first sync.Once
	early := func(r *http.Request) {
		first.Do(func() {
			if _, err := os.Stat(endpoint("vault")); err == nil {
				t.Errorf("Mounts are taken before the first request, %s", r.URL)
			}
		})
	}
	ui := free(t)
	serve := command(t, "--node-name=node-1", "--endpoint", endpoint("vault"), "--endpoint", endpoint("openbao"), "--state-dir", dir, "--allow-disk-state", "--health-addr=127.0.0.1:0",
		"--ui-addr", ui, "--kubelet-dir", dir, "--kubeconfig", kubeconfig(t, dir, jwt, early), "--vault-addr", v.Serve(t)+"/", "--log-level=debug")
	serve.Env = append(serve.Env, "VAULT_ADDR=http://127.0.0.1:1", "VAULT_TOKEN=canary", "VAULT_HEADERS=canary", "VAULT_MAX_RETRIES=nonsense",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://user:canary@"+silent(t), "OTEL_EXPORTER_OTLP_HEADERS=authorization=canary")
	var log bytes.Buffer
	serve.Stderr = &log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for i, provider := range []string{"vault", "openbao"} {
		sent := map[string]string{"openbao": jwt}[provider]
		conn, err := grpc.NewClient("unix:"+endpoint(provider), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		driver, request := v1alpha1.NewCSIDriverProviderClient(conn), mountRequest(t, provider, sent)
		if i == 0 {
			_, err := driver.Mount(ctx, request, grpc.WaitForReady(true))
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), `below "/var/lib/kubelet"`) {
				t.Fatalf("a pod of another kubelet folder: %v", err)
			}
		}
		if err := os.MkdirAll(filepath.Join(dir, "pods", "0f8a-11", "volumes", "kubernetes.io~csi", provider), 0o700); err != nil {
			t.Fatal(err)
		}
		resp, err := driver.Mount(ctx, request, grpc.WaitForReady(true))
		if err != nil {
			t.Fatalf("%s: %v", provider, err)
		}
		shown := func(u vaulttest.User) bool {
			return len(resp.GetFiles()) == 1 && string(resp.GetFiles()[0].GetContents()) == u.Name
		}
		if users := v.Users(); len(users) != i+1 || !slices.ContainsFunc(users, shown) {
			t.Errorf("%s: files %v for users %v", provider, resp.GetFiles(), users)
		}
	}
	for _, output := range []string{"table", "wide", "json", "yaml"} {
		text, err := command(t, "leases", "-o", output, "--state-dir", dir).Output()
		if err != nil || !strings.Contains(string(text), "database/creds/my-app") {
			t.Errorf("leases -o %s: %v\n%s", output, err, text)
		}
	}

	none, err := command(t, "leases", "-n", "elsewhere", "--state-dir", dir).Output()
	if err != nil || string(none) != "Of the 2 grants on node node-1 none is selected.\n" {
		t.Errorf("leases -n elsewhere: %q, %v", none, err)
	}
	watch := command(t, "leases", "-w", "--expiring-within=2h", "--state-dir", dir)
	shown, err := watch.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	for lines, looks := bufio.NewScanner(shown), 0; looks < 2 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "POD ") {
			looks++
		}
	}
	if err := watch.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := watch.Wait(); err != nil {
		t.Errorf("leases -w: %v", err)
	}
	text, err := command(t, "revoke", "--pod=shop/app", "--state-dir", dir).CombinedOutput() // nobody answers
	if err == nil || !strings.Contains(string(text), "database/creds/my-app") || !strings.Contains(string(text), "nothing was revoked") {
		t.Errorf("revoke: %v\n%s", err, text)
	}
	text, err = command(t, "revoke", "--pod=shop/other", "--state-dir", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(text), "nothing is held for pod shop/other on node node-1") {
		t.Errorf("revoke: %v\n%s", err, text)
	}
	text, err = command(t, "drain", "--state-dir", dir).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(string(text), "shop/app  ") || !strings.Contains(string(text), "running pods use the above") {
		t.Errorf("drain: %v\n%s", err, text)
	}
	text, err = command(t, "drain", "--leave", "--state-dir", dir).CombinedOutput()
	if err != nil || !strings.Contains(string(text), "database/creds/my-app") {
		t.Errorf("drain --leave: %v\n%s", err, text)
	}

	nodes := fleettest.New(t)
	nodes.Add("node-1", asProgram(t))
	config := nodes.Kubeconfig(t)
	text, err = command(t, "leases", "--all-nodes", "--kubeconfig", config, "--state-dir", dir).CombinedOutput()
	if err != nil || strings.Count(string(text), "\nnode-1  shop/app  ") != 2 {
		t.Errorf("leases --all-nodes: %v\n%s", err, text)
	}
	text, err = command(t, "drain", "--all-nodes", "--kubeconfig", config, "--state-dir", dir).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(string(text), "running pods use the above") {
		t.Errorf("drain --all-nodes: %v\n%s", err, text)
	}

	page := curl(t, http.MethodGet, "http://"+ui+"/") + curl(t, http.MethodGet, "http://"+ui+"/v1/leases")
	for _, part := range []string{"<title>Leasehold</title>", `"provider":"dev"`, "database/creds/my-app"} {
		if !strings.Contains(page, part) {
			t.Errorf("the page and its leases have no %s", part)
		}
	}
	if answer := curl(t, http.MethodPost, "http://"+ui+"/v1/drain?force=true"); answer != "Method Not Allowed\n" || len(v.Users()) != 2 {
		t.Errorf("a drain by the page: %s, and %d users are left", answer, len(v.Users()))
	}

	if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := serve.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, log.String())
	}
	if got := len(v.Users()); got != 2 {
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
		if strings.Contains(page, text) {
			t.Errorf("the page holds %q", text)
		}
		if strings.Contains(log.String(), text) {
			t.Errorf("the log holds %q:\n%s", text, log.String())
		}
	}
	for _, told := range []string{"logged in", "sending traces"} {
		if !strings.Contains(log.String(), told) {
			t.Errorf("the log at debug level does not say %q:\n%s", told, log.String())
		}
	}
}
