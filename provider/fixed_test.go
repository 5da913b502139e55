//nolint:forbidigo // sleeps inside synctest bubbles only
package provider_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/leasehold-csi/leasehold/internal/vault/vaulttest"
)

// The tests below are named after bugs of the provider that Leasehold takes the place of.

const (
	cert  = "- {objectName: a, secretPath: pki/issue/x, method: PUT, secretKey: certificate, secretArgs: {common_name: a.test}}\n"
	other = "- {objectName: b, secretPath: pki/issue/x, method: PUT, secretKey: certificate, secretArgs: {common_name: b.test}}\n"
)

// TestSecretArgsOfOnePathDiffer: both objects were given the first answer.
func TestSecretArgsOfOnePathDiffer(t *testing.T) {
	bubble(t, 0, func(n *node) {
		n.vault.PKI("pki/issue/x", false)
		c := n.validCall()
		c.params["objects"] = cert + other
		if files, _ := n.mount(c); files["a"] == files["b"] || files["a"] == "" {
			t.Errorf("one certificate for two names: %q", files)
		}
	})
}

// TestPathsWrittenDifferentlyAreOneLease: a user name came from one lease and the password from another.
func TestPathsWrittenDifferentlyAreOneLease(t *testing.T) {
	bubble(t, 0, func(n *node) {
		c := n.validCall()
		c.params["objects"] = "- {objectName: u, secretPath: database/creds/my-app, secretKey: username}\n" +
			"- {objectName: p, secretPath: /v1/database/creds/my-app, secretKey: password, method: get}\n"
		files, _ := n.mount(c)
		users := n.vault.Users()
		if len(users) != 1 || users[0].Name != files["u"] || n.vault.Count(readRequest) != 1 {
			t.Errorf("%d reads and users %v for one set of credentials", n.vault.Count(readRequest), users)
		}
	})
}

// TestEmptyReplyIsAnError: a 204, or nothing where an answer should be, ended the provider for the whole node.
func TestEmptyReplyIsAnError(t *testing.T) {
	for name, change := range map[string]func(*node, *call){
		"204": raw(204, "", ""), "nothing": raw(200, "application/json", ""), "null": raw(200, "application/json", "null"), "no data": raw(200, "application/json", "{}"),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 0, func(n *node) {
				c := n.validCall()
				change(n, c)
				n.refused(c, codes.FailedPrecondition)
				n.mount(n.validCall())
			})
		})
	}
}

// TestEndpointsThatAreNoJSON: pki/ca_chain and its like could not be read.
func TestEndpointsThatAreNoJSON(t *testing.T) {
	bubble(t, 0, func(n *node) {
		const chain = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
		n.vault.Raw("pki/ca_chain", 200, "application/pem-certificate-chain", chain)
		c := n.validCall()
		path("pki/ca_chain")(n, c)
		if files, _ := n.mount(c); files["x"] != chain {
			t.Errorf("the file is %q", files["x"])
		}
	})
}

// TestPermissionsMeanWhatTheySay: 600 made a file of mode 01130, and "0600" was refused.
func TestPermissionsMeanWhatTheySay(t *testing.T) {
	for permission, want := range map[string]int32{"0600": 0o600, "600": 0o600, `"0600"`: 0o600, "384": 0o600, "420": 0o644} {
		bubble(t, 0, func(n *node) {
			c := n.validCall()
			c.params["objects"] = "- {objectName: x, secretPath: secret/data/app, secretKey: password, filePermission: " + permission + "}"
			resp, failure := n.try(context.Background(), c)
			if failure.Code() != codes.OK || resp.GetFiles()[0].GetMode() != want {
				t.Errorf("%s: %v, %v", permission, resp.GetFiles(), failure)
			}
			if warned := strings.Contains(n.told.String(), "ClassWarning"); warned != (permission == "600") {
				t.Errorf("%s: warned: %t", permission, warned)
			}
		})
	}
}

// TestEncodingWithoutKeyIsTold: it was silently passed over.
func TestEncodingWithoutKeyIsTold(t *testing.T) {
	bubble(t, 0, func(n *node) {
		c := n.validCall()
		c.params["objects"] = "- {objectName: x, secretPath: secret/data/app, encoding: base64}"
		n.mount(c)
		if !strings.Contains(n.told.String(), "encoding has no effect without secretKey") {
			t.Error("nobody was told")
		}
	})
}

// TestWholeAnswerChangesOnlyWithTheSecret: the file held Vault's request id, so that each read changed it and restarted pods.
func TestWholeAnswerChangesOnlyWithTheSecret(t *testing.T) {
	bubble(t, 0, func(n *node) {
		c := n.validCall()
		path("secret/data/app")(n, c)
		before, versions := n.mount(c)
		time.Sleep(10 * time.Minute)
		reads := n.vault.Count("secret/data/app")
		if after, now := n.mount(c); after["x"] != before["x"] || now["x"] != versions["x"] || n.vault.Count("secret/data/app") == reads {
			t.Errorf("read again: %t; the file went from %q to %q", n.vault.Count("secret/data/app") > reads, before["x"], after["x"])
		}
	})
}

// TestFailedMountLeavesNoLease: each retry of a class whose second object failed made another lease of its first, and forgot it.
func TestFailedMountLeavesNoLease(t *testing.T) {
	bubble(t, 0, func(n *node) {
		c := n.validCall()
		c.params["objects"] = "- {objectName: u, secretPath: database/creds/my-app, secretKey: username}\n- {objectName: x, secretPath: secret/data/missing, secretKey: k}\n"
		for range 10 {
			n.refused(c, codes.NotFound)
			time.Sleep(time.Minute)
		}
		if got := n.vault.Count(readRequest); got != 1 {
			t.Errorf("ten tries read %d sets of credentials", got)
		}
		n.end()
		n.checkEmpty()
	})
}

// TestServerErrorIsNotReadTwice: a 5xx was repeated, although the credentials may have been made.
func TestServerErrorIsNotReadTwice(t *testing.T) {
	bubble(t, 0, func(n *node) {
		n.vault.FailNext(readRequest, 1, vaulttest.Fault{Status: 502})
		c := n.validCall()
		n.refused(c, codes.FailedPrecondition)
		if got := n.vault.Count(readRequest); got != 1 {
			t.Errorf("one Mount read %d times", got)
		}
	})
}
