package render

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// pkiKeys of a PKI engine's answer are what a server reads from one file, in the order in which nginx and HAProxy take it.
var pkiKeys = []string{certificate, "ca_chain", "issuing_ca", "private_key"}

const certificate = "certificate"

func (r *reply) pem(o spec.Object) ([]byte, error) {
	blocks, err := r.blocks(o)
	return bytes.Join(blocks, nil), err
}

// blocks are those of the object's keys in their order. Of the whole answer it is those of pkiKeys, with private keys last.
func (r *reply) blocks(o spec.Object) ([][]byte, error) {
	if !o.Whole() {
		entries, err := r.entries(o)
		if err != nil {
			return nil, err
		}
		return pemBlocks(entries)
	}
	if _, ok := r.fields[certificate]; !ok {
		return nil, fmt.Errorf("has no key %q, as a PKI engine's would, so that format %s needs secretKey; %s", certificate, o.Format, r.keys())
	}
	var entries []entry
	for _, key := range pkiKeys {
		switch value := r.fields[key]; value {
		case nil, "": // Vault has some of them empty
		default:
			entries = append(entries, entry{key, value})
		}
	}
	blocks, err := pemBlocks(entries)
	var public, private [][]byte
	for _, block := range blocks {
		if isPrivateKey(block) {
			private = append(private, block)
		} else {
			public = append(public, block)
		}
	}
	return append(public, private...), err
}

func isPrivateKey(block []byte) bool {
	first, _, _ := bytes.Cut(block, []byte("\n"))
	return bytes.HasSuffix(first, []byte("PRIVATE KEY-----"))
}

// pemBlocks are the blocks of all entries, each once: an issuer can be the chain's first, and a root its own issuer.
func pemBlocks(entries []entry) (blocks [][]byte, err error) {
	seen := make(map[string]bool)
	for _, e := range entries {
		texts, isList := e.value.([]any)
		if !isList {
			texts = []any{e.value}
		}
		for _, value := range texts {
			text, _ := value.(string)
			found, err := splitPEM([]byte(text))
			if err != nil {
				return nil, fmt.Errorf("has under key %s what is not PEM: %w", spec.Quote(e.name), err)
			}
			for _, block := range found {
				if !seen[string(block)] {
					seen[string(block)] = true
					blocks = append(blocks, block)
				}
			}
		}
	}
	return blocks, nil
}

// splitPEM returns the blocks of a text, each ending with a newline. What stands around them is for people and left out; what begins like
// a block must be one.
func splitPEM(text []byte) (blocks [][]byte, err error) {
	begun := bytes.Count(text, []byte("-----BEGIN "))
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		blocks = append(blocks, pem.EncodeToMemory(block))
	}
	switch {
	case begun == 0:
		return nil, errors.New("it holds no block")
	case begun != len(blocks):
		return nil, errors.New("it holds a broken block")
	}
	return blocks, nil
}

// rawPEM is an answer that is no JSON.
func rawPEM(body []byte) ([]byte, error) {
	blocks, err := splitPEM(body)
	if err != nil {
		return nil, fmt.Errorf("is not PEM: %w", err)
	}
	return bytes.Join(blocks, nil), nil
}
