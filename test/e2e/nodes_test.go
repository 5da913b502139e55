//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/leasehold-csi/leasehold/internal/admin"
)

// operator is somebody who may list the provider's pods and DaemonSets, and what else a scenario allows.
type operator struct {
	*place
	kubeconfig string
}

func (p *place) operator() *operator {
	p.t.Helper()
	const name = "operator"
	p.makeAccount(name)
	ctx := p.t.Context()
	token, err := p.bed.Client().CoreV1().ServiceAccounts(p.ns).CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	p.secrets.add("an operator's token", token.Status.Token)
	o := &operator{place: p, kubeconfig: filepath.Join(p.t.TempDir(), "kubeconfig")}
	api := p.bed.RESTConfig()
	err = clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{
			name: {Server: api.Host, CertificateAuthority: api.CAFile, CertificateAuthorityData: api.CAData, TLSServerName: api.ServerName},
		},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {Token: token.Status.Token}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	}, o.kubeconfig)
	if err != nil {
		p.t.Fatal(err)
	}
	roles, bindings := p.bed.Client().RbacV1().Roles(provider), p.bed.Client().RbacV1().RoleBindings(provider)
	_, err = roles.Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: p.ns}}, metav1.CreateOptions{})
	if err == nil {
		_, err = bindings.Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: p.ns},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: p.ns},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: p.ns, Name: name}},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		ctx := context.WithoutCancel(p.t.Context())
		if err := errors.Join(bindings.Delete(ctx, p.ns, metav1.DeleteOptions{}), roles.Delete(ctx, p.ns, metav1.DeleteOptions{})); err != nil {
			p.t.Error(err)
		}
	})
	return o
}

// may gives the operator these verbs on pods/exec, from when the API server obeys it.
func (o *operator) may(verbs ...string) {
	o.t.Helper()
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: o.ns}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}},
		{APIGroups: []string{"apps"}, Resources: []string{"daemonsets"}, Verbs: []string{"list"}},
	}}
	if len(verbs) > 0 {
		role.Rules = append(role.Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods/exec"}, Verbs: verbs})
	}
	if _, err := o.bed.Client().RbacV1().Roles(provider).Update(o.t.Context(), role, metav1.UpdateOptions{}); err != nil {
		o.t.Fatal(err)
	}
}

// leasehold runs a command for all nodes on this machine.
func (o *operator) leasehold(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	o.t.Helper()
	cmd := exec.CommandContext(ctx, o.bed.State().Provider.Binary, append(args, "--all-nodes", "--kubeconfig", o.kubeconfig)...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); cmd.ProcessState == nil {
		o.t.Fatal(err)
	}
	return out.String(), complaints.String(), cmd.ProcessState.ExitCode()
}

// allNodes asks every node, of which there is one, as an operator does: without the right to, with it, and with less than the whole.
func (s *suite) allNodes(t *testing.T) {
	p := s.newPlace(t, "all-nodes")
	p.databaseClass()
	pod := p.run(newPod("used", "db"))
	held, credentials := p.mustHold(1), p.login(pod)
	node := s.bed.State().Node
	o := p.operator()

	o.may()
	s.eventually(t, "the operator may not run commands in the provider's pods", func(ctx context.Context) error {
		stdout, stderr, code := o.leasehold(ctx, "leases")
		if code != 3 || !strings.Contains(stderr, "not every node was reached") || !strings.Contains(stdout, "you may not run commands in the provider's pods") ||
			!strings.Contains(stdout, `cannot create resource "pods/exec"`) || !strings.Contains(stdout, node) {
			return fmt.Errorf("exit code %d: %s%s", code, stdout, stderr)
		}
		return nil
	})
	for _, verbs := range [][]string{{"create"}, {"create", "get"}} { // over SPDY, and over WebSockets
		o.may(verbs...)
		var report admin.ClusterReport
		s.eventually(t, fmt.Sprintf("the operator may %s pods/exec", verbs), func(ctx context.Context) error {
			stdout, stderr, code := o.leasehold(ctx, "leases", "-o", "json", "-n", p.ns)
			if code != 0 || stderr != "" {
				return fmt.Errorf("exit code %d: %s%s", code, stdout, stderr)
			}
			return json.Unmarshal([]byte(stdout), &report)
		})
		own, err := s.report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := admin.NewClusterReport()
		want.Nodes = []admin.Report{admin.Selection{Namespace: p.ns}.Of(own)}
		withoutTimes(report)
		withoutTimes(want)
		if !reflect.DeepEqual(report, want) || len(want.Nodes[0].Grants) != 1 {
			t.Errorf("with %s all nodes hold %+v, and the node itself %+v", verbs, report, want)
		}
	}

	stdout, stderr, code := o.leasehold(t.Context(), "drain")
	if code != 1 || !strings.Contains(stderr, "running pods use the above") || !strings.Contains(stdout, node+"  "+p.ns+"/used ") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if stdout, stderr, code = o.leasehold(t.Context(), "drain", "--leave"); code != 0 || !strings.Contains(stdout, "database/creds/"+p.role) {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	p.mustLogIn(credentials)
	p.mustStillHold(held)
	p.delete(pod, metav1.DeleteOptions{})
	p.awaitNothing()
}

// withoutTimes takes out what another look a moment later changes.
func withoutTimes(c admin.ClusterReport) {
	for _, r := range c.Nodes {
		for i := range r.Grants {
			g := &r.Grants[i]
			g.TokenSeconds, g.RenewSeconds = nil, nil
			for j := range g.Leases {
				g.Leases[j].Seconds, g.Leases[j].Of, g.Leases[j].Renewed = 0, 0, 0
			}
		}
	}
}
