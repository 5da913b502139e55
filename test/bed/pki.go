package bed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// authority signs the certificates of one bed. Its key lives only in memory, while the bed comes up.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// makePKI writes all keys and certificates of the control plane below pki.
func (b *Bed) makePKI(serviceIP string) error {
	ca, err := b.newAuthority()
	if err != nil {
		return err
	}
	if err := ca.sign(b, "apiserver", &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		IPAddresses: []net.IP{net.ParseIP(b.state.Host), net.ParseIP(serviceIP), net.IPv4(127, 0, 0, 1)},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return err
	}
	if err := ca.sign(b, "kubelet-client", &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return err
	}
	key, err := b.newKey("service-account")
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encoding the service account key: %w", err)
	}
	return b.writePEM("service-account.pub", "PUBLIC KEY", public)
}

// selfSign writes a certificate that only itself vouches for, and its key.
func (b *Bed) selfSign(name string, template *x509.Certificate) error {
	key, err := b.newKey(name)
	if err != nil {
		return err
	}
	der, err := (&authority{certificate: template, key: key}).der(template, key)
	if err != nil {
		return err
	}
	return b.writePEM(name+".crt", "CERTIFICATE", der)
}

func (b *Bed) newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the certificate authority: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "leasehold test bed"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	ca := &authority{certificate: template, key: key}
	der, err := ca.der(template, key)
	if err != nil {
		return nil, err
	}
	if ca.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("making the certificate authority: %w", err)
	}
	return ca, b.writePEM("ca.crt", "CERTIFICATE", der)
}

func (a *authority) sign(b *Bed, name string, template *x509.Certificate) error {
	key, err := b.newKey(name)
	if err != nil {
		return err
	}
	der, err := a.der(template, key)
	if err != nil {
		return err
	}
	return b.writePEM(name+".crt", "CERTIFICATE", der)
}

func (a *authority) der(template *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("choosing a serial number: %w", err)
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().AddDate(1, 0, 0)
	template.KeyUsage |= x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	return der, nil
}

func (b *Bed) newKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return key, b.writePEM(name+".key", "PRIVATE KEY", der)
}

func (b *Bed) writePEM(name, kind string, der []byte) error {
	encoded := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(b.path("pki", name), encoded, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// writeKubeconfig writes access to the bed's API server with a bearer token; namespace is the one of whoever uses it, empty for none.
func (b *Bed) writeKubeconfig(path, token, namespace string) error {
	ca, err := os.ReadFile(b.path("pki", "ca.crt"))
	if err != nil {
		return fmt.Errorf("reading the certificate authority: %w", err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["bed"] = &clientcmdapi.Cluster{Server: b.state.Server, CertificateAuthorityData: ca}
	config.AuthInfos["bed"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["bed"] = &clientcmdapi.Context{Cluster: "bed", AuthInfo: "bed", Namespace: namespace}
	config.CurrentContext = "bed"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return nil
}
