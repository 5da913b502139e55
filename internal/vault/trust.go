package vault

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

const (
	// lookEvery is how often the TLS files of a server are looked at, at most: certificates are rotated days before they end.
	lookEvery = 5 * time.Second
	// Bounds of what is read, because a tenant may name the files.
	maxTLSFile  = 1 << 20 // bytes of one file
	maxTLSFiles = 1024    // files of one folder
)

// tlsConfig reads the TLS files of a server.
func tlsConfig(s spec.Server) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.ServerName, InsecureSkipVerify: s.SkipVerify}
	files, err := caFiles(s)
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		pem, err := readTLSFile(s, path)
		if err != nil {
			return nil, err
		}
		if config.RootCAs == nil {
			config.RootCAs = x509.NewCertPool()
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading %s: no certificate is in it", path)
		}
	}
	if config.RootCAs == nil && s.CADirectory != "" {
		return nil, fmt.Errorf("reading %s: no file is in it", s.CADirectory)
	}
	if s.ClientCert == "" && s.Pair.IsZero() {
		return config, nil
	}
	pair, err := clientPair(s)
	if err != nil {
		return nil, err
	}
	// Not Certificates: the CA of a certificate that logs in need not be among those that the server names.
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return config, nil
}

// clientPair is what the client shows: the pod's, or else that in the files.
func clientPair(s spec.Server) (tls.Certificate, error) {
	if text := []byte(s.Pair.Reveal()); len(text) > 0 {
		pair, err := tls.X509KeyPair(text, text) // it looks for blocks of the kind that it wants
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("pairing tls.crt and tls.key of the pod's nodePublishSecretRef: %w", err)
		}
		return pair, nil
	}
	cert, err := readTLSFile(s, s.ClientCert)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readTLSFile(s, s.ClientKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("pairing %s and %s: %w", s.ClientCert, s.ClientKey, err)
	}
	return pair, nil
}

// caFiles lists the files of CA certificates, sorted; none for the system's roots. Folders in the folder are passed over: a mounted
// ConfigMap has one with the files behind its links.
func caFiles(s spec.Server) ([]string, error) {
	if s.CACert != "" || s.CADirectory == "" {
		return slices.DeleteFunc([]string{s.CACert}, func(path string) bool { return path == "" }), nil
	}
	folder, err := openTLS(s, s.CADirectory, unix.O_DIRECTORY)
	if err != nil {
		return nil, unreadable(s.CADirectory, err)
	}
	defer func() { _ = folder.Close() }()
	names, err := folder.Readdirnames(maxTLSFiles + 1)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, unreadable(s.CADirectory, err)
	case len(names) > maxTLSFiles:
		return nil, fmt.Errorf("reading %s: it holds more than %d files", s.CADirectory, maxTLSFiles)
	}
	slices.Sort(names)
	var files []string
	for _, name := range names {
		path := filepath.Join(s.CADirectory, name)
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			files = append(files, path)
		}
	}
	return files, nil
}

// openTLS opens a file or folder. A tenant's must not lead out of the folder that the operator opened for it.
func openTLS(s spec.Server, path string, flag int) (*os.File, error) {
	flag |= os.O_RDONLY | unix.O_NONBLOCK // of a pipe, too, the opening ends
	rel, err := filepath.Rel(s.TLSFolder, path)
	if s.TLSFolder == "" || err != nil || !filepath.IsLocal(rel) { // the operator's
		return os.OpenFile(path, flag, 0)
	}
	root, err := os.OpenRoot(s.TLSFolder)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	return root.OpenFile(rel, flag, 0)
}

func readTLSFile(s spec.Server, path string) ([]byte, error) {
	f, err := openTLS(s, path, 0)
	if err != nil {
		return nil, unreadable(path, err)
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: it is not a plain file", path)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxTLSFile+1))
	if err != nil {
		return nil, unreadable(path, err)
	}
	if len(content) > maxTLSFile {
		return nil, fmt.Errorf("reading %s: it is larger than %d MiB", path, maxTLSFile>>20)
	}
	return content, nil
}

func unreadable(path string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok { // its text repeats the path
		err = e.Err
	}
	return fmt.Errorf("reading %s: %w", path, err)
}

// look tells how the TLS files of a server look from outside. Whenever one is replaced or rewritten it is another text.
func look(s spec.Server) string {
	var text strings.Builder
	files, err := caFiles(s)
	if err != nil {
		_, _ = fmt.Fprintln(&text, err)
	}
	for _, path := range append(files, s.ClientCert, s.ClientKey) {
		var at unix.Stat_t
		_ = unix.Stat(path, &at) // what is not there looks like nothing
		_, _ = fmt.Fprintln(&text, path, at.Dev, at.Ino, at.Size, at.Mtim, at.Ctim)
	}
	return text.String()
}
