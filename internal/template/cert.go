package template

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
)

var errNoCert = errors.New("the answer has no certificate")

// parseCert returns an answer of PKI as pkiCert gives it: what is a key, an authority or neither is told by looking at each PEM block
// of any of its texts. Where consul-template looks at the texts in no order, here the chain comes in its own.
func parseCert(body []byte) (any, error) {
	s, err := parseSecret(body)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, errNoCert
	}
	var certs dependency.PemEncoded
	rest := pems(s.Data)
	for {
		var block *pem.Block
		if block, rest = nextBlock(rest); block == nil {
			return certs, nil
		}
		text := string(pem.EncodeToMemory(block))
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			certs.Key = text
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return nil, errNoCert
		case !cert.IsCA:
			certs.Cert = text
		default:
			if certs.CA == "" {
				certs.CA = text
			}
			if !certs.CaChainContains(text) {
				certs.CAChain = append(certs.CAChain, text)
			}
		}
	}
}

// pems joins the texts of an answer, the issuing authority before the chain.
func pems(data map[string]any) []byte {
	var all bytes.Buffer
	first := []string{"issuing_ca", "ca_chain"}
	for _, key := range append(first, slices.Sorted(maps.Keys(data))...) {
		switch v := data[key].(type) {
		case string:
			all.WriteString(v + "\n")
		case []any:
			for _, item := range v {
				if text, ok := item.(string); ok && key == "ca_chain" {
					all.WriteString(text + "\n")
				}
			}
		}
	}
	return all.Bytes()
}

// nextBlock returns the next PEM block, and nil where it is broken or there is none.
func nextBlock(text []byte) (*pem.Block, []byte) {
	start := bytes.Index(text, []byte("-----BEGIN"))
	if start < 0 {
		return nil, nil
	}
	return pem.Decode(text[start:])
}
