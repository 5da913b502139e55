//go:build e2e

package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

func (s *suite) twoVolumes(t *testing.T) {
	p := s.newPlace(t, "two-volumes")
	p.databaseClass()
	pod := newPod("two", "db")
	addVolume(pod, "more-secrets", "/mnt/more", "db")
	pod = p.run(pod)
	held := p.mustHold(2)
	one, other := p.login(pod), login{user: p.read(pod, "more-secrets", "db_user"), password: p.read(pod, "more-secrets", "db_pass")}
	if one == other {
		t.Error("both volumes show the same credentials")
	}
	p.mustLogIn(one)
	p.mustLogIn(other)
	if a, b := held.grants[0], held.grants[1]; a.UID != b.UID || a.Volume == b.Volume {
		t.Errorf("leasehold leases says %+v", held.grants)
	}
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
	p.mustNotBeHeld(held, one)
	p.mustNotBeHeld(held, other)
}

const staticObjects = `
- objectName: v1/user
  secretPath: kv1/my-app
  secretKey: username
- objectName: v1/password
  secretPath: kv1/my-app
  secretKey: password
- objectName: v2/user
  secretPath: secret/data/my-app
  secretKey: username
- objectName: v2/password
  secretPath: secret/data/my-app
  secretKey: password
- objectName: v2/all.json
  secretPath: secret/data/my-app
- objectName: tls.crt
  secretPath: pki/issue/my-app
  method: PUT
  secretArgs: &request
    common_name: app.example.test
    ttl: 30m
  secretKey: certificate
- objectName: tls.key
  secretPath: pki/issue/my-app
  method: PUT
  secretArgs: *request
  secretKey: private_key
- objectName: tls.p12
  secretPath: pki/issue/my-app
  method: PUT
  secretArgs: *request
  format: pkcs12
  password: changeit
`

// staticSecrets mounts several keys of several paths, each of which must have been read once.
func (s *suite) staticSecrets(t *testing.T) {
	p := s.newPlace(t, "static")
	p.class("static", map[string]string{"roleName": "my-app-role", "objects": staticObjects})
	mark := s.auditMark(t)
	pod := p.run(newPod("static", "static"))
	for file, want := range map[string]string{
		"v1/user": "kv1-user", "v1/password": "kv1-password", "v2/user": "kv2-user", "v2/password": "kv2-password",
	} {
		if p.read(pod, volume, file) != want {
			t.Errorf("file %s does not hold what Vault does", file)
		}
	}
	var whole struct {
		Data struct{ Data map[string]string }
	}
	if err := json.Unmarshal([]byte(p.read(pod, volume, "v2/all.json")), &whole); err != nil || whole.Data.Data["username"] != "kv2-user" {
		t.Errorf("a file without secretKey is not the whole answer: %v", err)
	}
	pair, err := tls.X509KeyPair([]byte(p.read(pod, volume, "tls.crt")), []byte(p.read(pod, volume, "tls.key")))
	if err != nil {
		t.Fatalf("certificate and key are not from one answer: %v", err)
	}
	if _, leaf, chain, err := pkcs12.DecodeChain([]byte(p.read(pod, volume, "tls.p12")), "changeit"); err != nil || !leaf.Equal(pair.Leaf) || len(chain) != 1 {
		t.Errorf("the key store is not of the same answer: %v", err)
	}
	requests := s.audit(t, mark, p.ns)
	want := map[string]int{
		"update auth/kubernetes/login": 1, "read kv1/my-app": 1, "read secret/data/my-app": 1, "update pki/issue/my-app": 1,
	}
	if !maps.Equal(requests, want) {
		t.Errorf("Vault was asked %v, want %v", requests, want)
	}
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
}

// logsInByAppRole mounts by AppRole, once with a secret-id and once with a wrapped one, which is used up by the first login.
func (s *suite) logsInByAppRole(t *testing.T) {
	p := s.newPlace(t, "approle")
	ctx, mount, vault := t.Context(), p.role+"/approle", p.vault
	if err := vault.Sys().EnableAuthWithOptionsWithContext(ctx, mount, &api.EnableAuthOptions{Type: "approle"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vault.Sys().DisableAuth(mount) })
	at := "auth/" + mount + "/role/app"
	if _, err := vault.Logical().WriteWithContext(ctx, at, map[string]any{"token_policies": "my-app", "token_ttl": "20m"}); err != nil {
		t.Fatal(err)
	}
	role, err := vault.Logical().ReadWithContext(ctx, at+"/role-id")
	if err != nil {
		t.Fatal(err)
	}
	p.class("db", map[string]string{"roleId": role.Data["role_id"].(string), "vaultAuthMountPath": mount, "objects": credentials(p.role)})
	wrapping, err := vault.Clone()
	if err != nil {
		t.Fatal(err)
	}
	wrapping.SetToken(vault.Token())
	wrapping.SetWrappingLookupFunc(func(string, string) string { return "30m" })
	var pods []*corev1.Pod
	for key, client := range map[string]*api.Client{"secretId": vault, "wrappedSecretId": wrapping} {
		issued, err := client.Logical().WriteWithContext(ctx, at+"/secret-id", nil)
		if err != nil {
			t.Fatal(err)
		}
		value := ""
		if issued.WrapInfo != nil {
			value = issued.WrapInfo.Token
		} else {
			value = issued.Data["secret_id"].(string)
		}
		p.secrets.add("a "+key, value)
		name := strings.ToLower(key)
		p.secret(name, map[string]string{key: value})
		pods = append(pods, p.run(podWith(name)))
	}
	for _, pod := range pods {
		p.mustLogIn(p.login(pod))
	}
	other := newPod("other", "db")
	other.Spec.Volumes[0].CSI.NodePublishSecretRef = &corev1.LocalObjectReference{Name: "wrappedsecretid"}
	p.create(other)
	p.awaitComplaint("other", "wrapping token is not valid or does not exist", "wrap a new secret-id")
	p.deleteAll()
	p.awaitNothing()
}

// logsInByCertificate mounts with a certificate of the pod's own, and keeps the pod for longer than the token lives that nobody renews:
// Vault renews it over a connection with that certificate only.
func (s *suite) logsInByCertificate(t *testing.T) {
	const ttl = 20 * time.Second
	p := s.newPlace(t, "certificate")
	ctx, mount := t.Context(), p.role+"/cert"
	if err := p.vault.Sys().EnableAuthWithOptionsWithContext(ctx, mount, &api.EnableAuthOptions{Type: "cert"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.vault.Sys().DisableAuth(mount) })
	p.class("db", map[string]string{
		"authMethod": "cert", "vaultAuthMountPath": mount, "objects": credentials(p.role),
		"vaultAddress": s.bed.State().Vault.TLSAddress, "vaultSkipTLSVerify": "true",
	})
	role := map[string]any{"certificate": p.certificate("known"), "token_policies": "my-app", "token_ttl": ttl.Seconds()}
	if _, err := p.vault.Logical().WriteWithContext(ctx, "auth/"+mount+"/certs/app", role); err != nil {
		t.Fatal(err)
	}
	p.certificate("stranger")
	p.create(podWith("stranger"))
	p.create(newPod("none", "db"))
	pod := p.run(podWith("known"))
	p.awaitComplaint("stranger", "failed to match all constraints for this login certificate", `client certificate of "CN=stranger"`)
	p.awaitComplaint("none", "there is no client certificate to log in with")
	credentials := p.login(pod)
	held, err := p.holds(ctx)
	if err != nil || len(held.leases) != 1 {
		t.Fatalf("there should be one lease: %v, %v", held, err)
	}
	p.mustOutlive(credentials, held.leases[0], 2*ttl+5*time.Second)
	p.deleteAll()
	p.awaitNothing()
}

// mustOutlive wants mounted credentials to work until their lease is that old.
func (p *place) mustOutlive(credentials login, lease string, ttl time.Duration) {
	p.t.Helper()
	p.eventually(p.t, fmt.Sprintf("the lease is older than %s", ttl), func(ctx context.Context) error {
		if err := p.bed.CanLogIn(ctx, credentials.user, credentials.password); err != nil {
			p.t.Fatalf("logging in with the mounted credentials: %v", err)
		}
		age, err := p.age(ctx, lease)
		if err == nil && age < ttl {
			err = errors.New("it is younger")
		}
		return err
	})
}

// certificate makes a client certificate, and a Secret of that name with it and its key.
func (p *place) certificate(name string) string {
	p.t.Helper()
	cert, key := vaulttest.Pair(name, time.Hour)
	p.secrets.add("a client certificate's key", strings.Split(key, "\n")[1])
	p.secret(name, map[string]string{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key})
	return cert
}

// secret makes a Secret for a nodePublishSecretRef.
func (p *place) secret(name string, content map[string]string) {
	p.t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: content}
	if _, err := p.bed.Client().CoreV1().Secrets(p.ns).Create(p.t.Context(), secret, metav1.CreateOptions{}); err != nil {
		p.t.Fatal(err)
	}
}

// podWith is a pod of the class db with a Secret of its own name.
func podWith(secret string) *corev1.Pod {
	pod := newPod(secret, "db")
	pod.Spec.Volumes[0].CSI.NodePublishSecretRef = &corev1.LocalObjectReference{Name: secret}
	return pod
}

// outlivesTTL keeps a pod for more than twice the life that its lease was issued with.
func (s *suite) outlivesTTL(t *testing.T) {
	const ttl = 20 * time.Second
	p := s.newPlace(t, "outlives")
	p.makeRole(p.role, map[string]any{"default_ttl": ttl.Seconds(), "max_ttl": (10 * time.Minute).Seconds()})
	p.databaseClass()
	pod := newPod("long-lived", "db")
	p.logInAlways(pod)
	pod = p.run(pod)
	held, credentials := p.mustHold(1), p.login(pod)
	p.mustOutlive(credentials, held.leases[0], 2*ttl+5*time.Second)
	p.mustStillHold(held)
	if p.login(pod) != credentials {
		t.Error("the mounted credentials have changed")
	}
	var log func() string
	if s.hasKubelet() {
		log = p.appLog(pod)
	}
	p.delete(pod, metav1.DeleteOptions{})
	if log != nil {
		mustNeverFail(t, log())
	}
	p.awaitNothing()
}

// mustNeverFail checks the log of an app that logs in again and again.
func mustNeverFail(t *testing.T, log string) {
	t.Helper()
	if !strings.Contains(log, "ok\n") || strings.Contains(log, "failed") {
		t.Errorf("the app could not always log in:\n%s", log)
	}
}

func (s *suite) wrongServiceAccount(t *testing.T) {
	p := s.newPlace(t, "account")
	p.makeAccount("somebody-else")
	p.databaseClass()
	pod := newPod("stranger", "db")
	pod.Spec.ServiceAccountName = "somebody-else"
	pod = p.create(pod)
	p.awaitComplaint(pod.Name, "service account name not authorized", p.ns+"/somebody-else", `role "my-app-role"`)
	p.awaitNothing() // kubelet tries again and again: between two tries nothing is left
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitObjectGone(pod)
	p.awaitNothing()
}
