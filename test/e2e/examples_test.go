//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/vault/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
	"software.sslmate.com/src/go-pkcs12"
)

// example is a file of docs/examples: commands in the comment at its head, and objects. What is run and applied is what stands there, but
// for the names of its app and namespace, which are the test's own, and what edit changes.
type example struct {
	// edit makes the text fit the bed; nil for a text that does.
	edit func(p *place, text string) string
	// check looks at the running pod.
	check func(p *place, pod *corev1.Pod)
}

// documented are the examples by the names of their files.
var documented = map[string]example{
	"approle":        {check: (*place).checkAppRole},
	"dotenv":         {check: (*place).checkDotenv},
	"files-per-key":  {check: (*place).checkFilesPerKey},
	"java-keystore":  {check: (*place).checkKeystore},
	"json-file":      {check: (*place).checkJSON},
	"nginx-tls":      {edit: shortCertificate, check: (*place).checkNginx},
	"pgpass":         {edit: bedsDatabase, check: (*place).checkPgpass},
	"spring-boot":    {check: (*place).checkSpring},
	"static-role":    {edit: frequentRotation, check: (*place).checkStaticRole},
	"synced-secret":  {check: (*place).checkSynced},
	"vault-db-creds": {check: (*place).checkCredentials},
}

// examples applies every file of docs/examples.
func (s *suite) examples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "docs", "examples", "*.yaml"))
	if err != nil || len(files) < len(documented) {
		t.Fatalf("there are the examples %q: %v", files, err)
	}
	s.enableAppRole(t)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, ok := documented[name]
			if !ok {
				t.Fatal("nothing looks at what this example's pod sees")
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s.runExample(t, e, string(text))
		})
	}
}

func (s *suite) runExample(t *testing.T, e example, text string) {
	p := s.newPlace(t, "example")
	account := regexp.MustCompile(`(?m)^kind: ServiceAccount\nmetadata:\n  name: (.+)$`).FindStringSubmatch(text)
	if account == nil {
		t.Fatal("the example has no ServiceAccount")
	}
	text = strings.ReplaceAll(text, account[1], p.role)
	text = strings.ReplaceAll(text, "namespaces=default", "namespaces="+p.ns)
	if e.edit != nil {
		text = e.edit(p, text)
	}
	p.shell(commandsOf(t, text))
	var others []string
	var pod *corev1.Pod
	for document := range strings.SplitSeq(text, "\n---\n") {
		if !strings.Contains(document, "kind: Pod\n") {
			others = append(others, document)
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(document), &pod); err != nil {
			t.Fatal(err)
		}
	}
	if pod == nil {
		t.Fatal("the example has no pod")
	}
	p.shell("kubectl apply -f - <<'END'\n" + strings.Join(others, "\n---\n") + "\nEND\n")

	running := pod.DeepCopy()
	app := &running.Spec.Containers[0]
	if !strings.HasPrefix(app.Image, "busybox:") { // the bed's image has a shell and no other program
		app.Command, app.Args = nil, nil
	}
	app.Image, app.ImagePullPolicy = appImage, corev1.PullNever
	running.Spec.TerminationGracePeriodSeconds = new(int64(2)) // a shell does not obey SIGTERM
	running = p.run(running)
	running.Spec.Containers = pod.Spec.Containers // for a check that runs the real ones
	e.check(p, running)
	p.delete(running, metav1.DeleteOptions{})
	p.awaitNothing()
	p.mustNotComplain()
}

// commandsOf returns the commands of an example, which are indented within its comment.
func commandsOf(t *testing.T, text string) string {
	t.Helper()
	head, _, _ := strings.Cut(text, "\napiVersion:")
	var commands []string
	for line := range strings.Lines(head) {
		if command, ok := strings.CutPrefix(line, "#     "); ok {
			commands = append(commands, command)
		}
	}
	if len(commands) == 0 {
		t.Fatal("the example has no commands for Vault")
	}
	return strings.Join(commands, "")
}

// shell runs commands as an administrator, also when the test is over.
func (p *place) shell(script string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.t.Context()), patience)
	defer cancel()
	cmd, err := p.bed.Shell(ctx, p.ns, script)
	if err != nil {
		p.t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%v of\n%s\n%s", err, script, out)
	}
}

// app returns a command that is a pod's container, run on this machine with the pod's volume; more are further texts to replace, and by
// what.
func (p *place) app(pod *corev1.Pod, more ...string) *exec.Cmd {
	fit := strings.NewReplacer(append(more, mountPath, p.folder(pod))...)
	container := pod.Spec.Containers[0]
	words := append(slices.Clone(container.Command), container.Args...)
	for i := range words {
		words[i] = fit.Replace(words[i])
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = os.Environ()
	for _, v := range container.Env {
		cmd.Env = append(cmd.Env, v.Name+"="+fit.Replace(v.Value))
	}
	return cmd
}

// folder is where this machine sees the files of a pod's volume.
func (p *place) folder(pod *corev1.Pod) string {
	return filepath.Join(p.volumeFolder(pod, volume), "mount")
}

func (p *place) mustRead(pod *corev1.Pod, file, want string) {
	p.t.Helper()
	if p.read(pod, volume, file) != want {
		p.t.Errorf("file %s is not what the example says", file)
	}
}

// awaitFile waits until a file of a pod's volume is this.
func (p *place) awaitFile(pod *corev1.Pod, file, want string) {
	p.t.Helper()
	p.eventually(p.t, "file "+file+" has changed", func(context.Context) error {
		content, err := os.ReadFile(filepath.Join(p.folder(pod), file))
		if err == nil && string(content) != want {
			err = errors.New("it has not")
		}
		return err
	})
}

func (p *place) checkCredentials(pod *corev1.Pod) {
	credentials := p.login(pod)
	p.mustLogIn(credentials)
	held := p.mustHold(1)
	if held.users[0] != credentials.user {
		p.t.Error("the mounted user is not the one that Vault made")
	}
	if g := held.grants[0]; g.Pod != pod.Name || g.UID != string(pod.UID) || g.Volume != volume || g.State != "Active" ||
		len(g.Leases) != 1 || g.Leases[0].Path != "database/creds/"+p.role {
		p.t.Errorf("leasehold leases says %+v", g)
	}
}

func (p *place) checkSpring(pod *corev1.Pod) {
	file := p.read(pod, volume, "application.properties")
	parts := regexp.MustCompile(`^\nspring\.datasource\.username=(.+)\nspring\.datasource\.password=(.+)\nshop\.api-key=s3cr3t\n$`).FindStringSubmatch(file)
	if parts == nil {
		p.t.Fatal("application.properties is not what the template says")
	}
	p.mustLogIn(login{parts[1], parts[2]})
	p.mustHold(1)
}

func bedsDatabase(p *place, text string) string {
	pg := p.bed.State().Postgres
	return strings.NewReplacer("host=postgres.shop.svc", "host="+pg.Host, "port=5432", fmt.Sprintf("port=%d", pg.Port), "dbname=app", "dbname="+pg.Database).Replace(text)
}

// checkPgpass runs the pod's own psql.
func (p *place) checkPgpass(pod *corev1.Pod) {
	out, err := p.app(pod).CombinedOutput()
	if held := p.mustHold(1); err != nil || !strings.Contains(string(out), held.users[0]) {
		p.t.Errorf("psql says %q: %v", out, err)
	}
}

func (p *place) checkDotenv(pod *corev1.Pod) {
	out, err := exec.Command("sh", "-c", "set -a; . "+filepath.Join(p.folder(pod), "app.env")+`; exec env`).Output()
	for _, want := range []string{"QUEUE_URL=amqp://queue.shop.svc", `QUEUE_PASSWORD=it is "$ecret"`} {
		if err != nil || !slices.Contains(strings.Split(string(out), "\n"), want) {
			p.t.Errorf("the shell has no %s: %v", want, err)
		}
	}
}

func (p *place) checkKeystore(pod *corev1.Pod) {
	_, leaf, authorities, err := pkcs12.DecodeChain([]byte(p.read(pod, volume, "keystore.p12")), "changeit")
	if err != nil {
		p.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	for _, authority := range authorities {
		roots.AddCert(authority)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "pay.shop.svc"}); err != nil {
		p.t.Error(err)
	}
}

func (p *place) checkJSON(pod *corev1.Pod) {
	p.mustRead(pod, "cart.json", `{"cache":{"password":"s3cr3t","url":"redis://cache.shop.svc"},"currencies":["EUR","SEK"]}`+"\n")
	p.mustRead(pod, "cache.json", `{"password":"s3cr3t","url":"redis://cache.shop.svc"}`+"\n")
	p.mustRead(pod, "currencies.yaml", "currencies: [EUR, SEK]\n")
	p.shell(`echo '{"cache": null, "currencies": []}' | vault kv put secret/` + p.role + " -")
	p.awaitFile(pod, "cart.json", `{"cache":null,"currencies":[]}`+"\n")
	p.mustRead(pod, "currencies.yaml", "currencies: []\n")
}

func (p *place) checkFilesPerKey(pod *corev1.Pod) {
	p.mustRead(pod, "keys/primary", "one-of-two-keys")
	p.mustRead(pod, "keys/secondary", "two-of-two-keys")
	if _, err := os.Stat(filepath.Join(p.folder(pod), "feature-flags.json")); !errors.Is(err, os.ErrNotExist) {
		p.t.Errorf("the file of a secret that is not there: %v", err)
	}
	p.shell("vault kv put secret/" + p.role + "/keys primary=one-new-key; vault kv put secret/" + p.role + "/flags dark=true")
	p.awaitFile(pod, "keys/primary", "one-new-key")
	p.awaitFile(pod, "feature-flags.json", `{"dark":"true"}`+"\n")
	if _, err := os.Stat(filepath.Join(p.folder(pod), "keys", "secondary")); !errors.Is(err, os.ErrNotExist) {
		p.t.Errorf("the file of a key that is gone: %v", err)
	}
}

// enableAppRole mounts the auth method where the examples look for it.
func (s *suite) enableAppRole(t *testing.T) {
	t.Helper()
	enabled, err := s.vault.Sys().ListAuthWithContext(t.Context())
	if err == nil && enabled["approle/"] == nil {
		err = s.vault.Sys().EnableAuthWithOptionsWithContext(t.Context(), "approle", &api.EnableAuthOptions{Type: "approle"})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (p *place) checkAppRole(pod *corev1.Pod) { p.mustRead(pod, "license", "SHOP-2026-0815") }

func (p *place) checkSynced(pod *corev1.Pod) {
	p.mustRead(pod, "password", "s3cr3t")
	awaitSecret := func(password string) {
		p.t.Helper()
		want := map[string][]byte{"password": []byte(password), "login.json": []byte(`{"password":"` + password + `","username":"shop"}` + "\n")}
		p.eventually(p.t, "the Secret is as the files are", func(ctx context.Context) error {
			secret, err := p.bed.Client().CoreV1().Secrets(p.ns).Get(ctx, p.role, metav1.GetOptions{})
			if err == nil && !equalData(secret.Data, want) {
				err = errors.New("it is not")
			}
			return err
		})
	}
	awaitSecret("s3cr3t")
	p.shell("vault kv put secret/" + p.role + " username=shop password=changed")
	awaitSecret("changed")
}

func equalData(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for key := range a {
		if !bytes.Equal(a[key], b[key]) {
			return false
		}
	}
	return true
}

func frequentRotation(_ *place, text string) string {
	return strings.Replace(text, "rotation_period=24h", "rotation_period=30s", 1)
}

// checkStaticRole follows two passwords that Vault makes.
func (p *place) checkStaticRole(pod *corev1.Pod) {
	p.t.Cleanup(func() {
		p.shell("vault delete database/static-roles/" + p.role + "-db; psql -c 'DROP ROLE \"" + p.role + "\"'")
	})
	if user, err := os.ReadFile(filepath.Join(p.folder(pod), "db_user")); err != nil || string(user) != p.role {
		p.t.Errorf("the user is %q, %v", user, err)
	}
	seen := map[string]bool{}
	p.eventually(p.t, "the file had three passwords that work", func(ctx context.Context) error {
		l := login{p.role, p.read(pod, volume, "db_pass")} // the user's name is in the paths too, and no secret
		if !seen[l.password] && p.bed.CanLogIn(ctx, l.user, l.password) == nil {
			seen[l.password] = true
		}
		if len(seen) < 3 {
			return fmt.Errorf("it had %d", len(seen))
		}
		return nil
	})
}

func shortCertificate(_ *place, text string) string {
	return strings.Replace(text, "ttl: 24h", "ttl: 2m", 1)
}

// checkNginx runs the pod's own nginx, of Debian's, on this machine, and waits until it serves with a second certificate.
func (p *place) checkNginx(pod *corev1.Pod) {
	dir := p.t.TempDir()
	address := p.runNginx(pod, dir)
	first := p.awaitServed(pod, address, nil)
	second := p.awaitServed(pod, address, first)
	p.t.Cleanup(func() { // the pod is over then
		for _, certificate := range []*x509.Certificate{first, second} {
			path := "pki/cert/" + strings.ReplaceAll(fmt.Sprintf("% x", certificate.SerialNumber.Bytes()), " ", "-")
			found, err := p.vault.Logical().ReadWithContext(context.WithoutCancel(p.t.Context()), path)
			if err != nil || found == nil || fmt.Sprint(found.Data["revocation_time"]) == "0" {
				p.t.Errorf("the certificate is not revoked: %v", err)
			}
		}
	})
}

// runNginx runs what the pod's container would until the test ends, and returns where it listens.
func (p *place) runNginx(pod *corev1.Pod, dir string) (address string) {
	p.t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	address = free.Addr().String()
	_ = free.Close()
	config, err := p.bed.Client().CoreV1().ConfigMaps(p.ns).Get(p.t.Context(), "nginx-tls", metav1.GetOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	var folders strings.Builder // those of Debian's nginx are root's
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		_, _ = fmt.Fprintf(&folders, "%s_temp_path %s; ", kind, filepath.Join(dir, kind))
	}
	text := strings.NewReplacer("http {", "http { access_log off; "+folders.String(), "/tmp", dir, "listen 443", "listen "+address, mountPath, p.folder(pod)).
		Replace(config.Data["nginx.conf"])
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	cmd := p.app(pod, "/etc/nginx-tls", dir, "nginx -c", "/usr/sbin/nginx -p "+dir+" -e stderr -c")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("starting nginx, of Debian's package nginx: %v", err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if p.t.Failed() {
			p.t.Logf("nginx says\n%s", output.String())
		}
	})
	return address
}

// awaitServed waits until nginx serves with a certificate other than before, which the volume has too.
func (p *place) awaitServed(pod *corev1.Pod, address string, before *x509.Certificate) (served *x509.Certificate) {
	p.t.Helper()
	p.eventually(p.t, "nginx serves with the volume's certificate, and not with an earlier one", func(ctx context.Context) error {
		authority, err := os.ReadFile(filepath.Join(p.folder(pod), "ca.crt"))
		if err != nil {
			return err
		}
		mounted, err := os.ReadFile(filepath.Join(p.folder(pod), "tls.crt"))
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(authority)
		dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "shop.example.com"}}
		connection, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer func() { _ = connection.Close() }()
		if _, err := io.WriteString(connection, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		if reply, err := io.ReadAll(connection); err != nil || !strings.HasSuffix(string(reply), "hello\n") {
			return fmt.Errorf("it says %q: %w", reply, err)
		}
		served = connection.(*tls.Conn).ConnectionState().PeerCertificates[0]
		block, _ := pem.Decode(mounted)
		switch {
		case block == nil || !bytes.Equal(block.Bytes, served.Raw):
			return errors.New("it serves with another")
		case before != nil && before.Equal(served):
			return errors.New("it is still the first")
		}
		return nil
	})
	return served
}
