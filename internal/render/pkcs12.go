package render

import (
	"bytes"
	"crypto/sha3"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// maxKeyText is the size of the PEM of a private key; one of RSA with 8192 bits has 6.4 kB. What is larger takes long to check.
const maxKeyText = 8 << 10

// pkcs12 is a key store of what format pem would write: the one private key, its certificate, which is the first, and the others as
// chain.
func (r *reply) pkcs12(o spec.Object) ([]byte, error) {
	blocks, err := r.blocks(o)
	if err != nil {
		return nil, err
	}
	var keys, certificates [][]byte
	for _, block := range blocks {
		switch {
		case isPrivateKey(block):
			keys = append(keys, block)
		case bytes.HasPrefix(block, []byte("-----BEGIN CERTIFICATE-----\n")):
			certificates = append(certificates, block)
		}
	}
	switch {
	case len(certificates) == 0:
		return nil, errors.New("holds no certificate, which format pkcs12 needs")
	case len(keys) == 0:
		return nil, errors.New("holds no private key, which format pkcs12 needs")
	case len(keys) > 1:
		return nil, fmt.Errorf("holds %d private keys, of which format pkcs12 takes one", len(keys))
	case len(keys[0]) > maxKeyText:
		return nil, fmt.Errorf("holds a private key that is larger than %d bytes", maxKeyText)
	}
	chain, err := parseChain(certificates)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificates[0], keys[0])
	if err != nil { // which may say what is in the blocks
		return nil, errors.New("holds a private key that is not the first certificate's, or none that format pkcs12 can write: RSA, EC or Ed25519, not encrypted")
	}
	// Not Modern, which a later version of the library may change: a file must not change because Leasehold did.
	store, err := pkcs12.Modern2023.WithRand(salts(o.Password, keys[0], certificates)).Encode(pair.PrivateKey, chain[0], chain[1:], o.Password)
	if err != nil {
		return nil, errors.New("cannot be written in the format pkcs12")
	}
	return store, nil
}

func parseChain(blocks [][]byte) ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, len(blocks))
	for i, text := range blocks {
		block, _ := pem.Decode(text)
		var err error
		if chain[i], err = x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("holds %d certificates, of which number %d cannot be read", len(blocks), i+1)
		}
	}
	return chain, nil
}

// salts is what a store takes its salts and initialisation vectors from. Random ones would make another file of the same answer at each
// republish. These are as good: they are drawn from everything that goes into the store, so that they are the same only where all of
// it is, and no two contents are ever encrypted with the same key and vector. To whoever does not know the private key they tell
// nothing, not even of the password.
func salts(password string, key []byte, certificates [][]byte) io.Reader {
	stream := sha3.NewSHAKE256()
	_, _ = fmt.Fprintf(stream, "leasehold pkcs12 %d %s\n", len(password), password) // writing never fails; blocks show their own ends
	_, _ = stream.Write(key)
	for _, block := range certificates {
		_, _ = stream.Write(block)
	}
	return stream
}
