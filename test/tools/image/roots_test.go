package main

import (
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

func TestRootsAreInTheImage(t *testing.T) {
	dir := t.TempDir()
	output := filepath.Join(dir, "image.tar")
	runOK(t, "-o", output, "-tag", "thing:dev", "-arch", "amd64", "-entrypoint", "/thing", "-ca",
		"-file", fakeProgram(t, dir, "amd64")+"=/thing")
	rest := contentOf(t, openArchive(t, output).images(t)["linux/amd64"], "etc/ssl/certs/ca-certificates.crt")

	inImage := map[string]bool{}
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if !root.IsCA {
			t.Errorf("%s is no certificate authority", root.Subject)
		}
		inImage[string(root.Raw)] = true
	}
	if len(inImage) < 50 {
		t.Errorf("%d certificate authorities; Mozilla trusts more than a hundred", len(inImage))
	}
	for root := range bundle.Roots() {
		if got, want := inImage[string(root.Certificate)], root.Constraint == nil; got != want {
			t.Errorf("root %x: in the image %t, trusted without a constraint %t", root.Certificate[:32], got, want)
		}
	}
}
