package main

import (
	"bytes"
	"encoding/pem"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

const (
	// caBundle is where Debian keeps its bundle and where Go programs look first.
	caBundle = "/etc/ssl/certs/ca-certificates.crt"
	// rootsModule is the module that the bundle comes from.
	rootsModule = "golang.org/x/crypto/x509roots/fallback"
)

// roots returns Mozilla's certificate authorities as PEM, from the Go team's module: pinned by go.sum, where the bundle of
// the machine that builds would be another on every machine. An authority that Mozilla trusts with a constraint is left
// out: PEM cannot say the constraint, and without it the authority would be trusted for more than it is.
func roots() []byte {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return out.Bytes()
}
