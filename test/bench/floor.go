package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// connections bounds the floor's connections to Vault, as Leasehold bounds its own.
const connections = 64

// floor does what a Mount needs of Vault and nothing else: a login, then the reads at the same time.
type floor struct {
	address string
	http    http.Client

	mu     sync.Mutex
	tokens []string
}

// newFloor speaks to a Vault; certificate is the file of its own when it speaks TLS, else empty.
func newFloor(address, certificate string) (*floor, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections, ForceAttemptHTTP2: true}
	if certificate != "" {
		pem, err := os.ReadFile(certificate)
		if err != nil {
			return nil, fmt.Errorf("reading Vault's certificate: %w", err)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem)
	}
	return &floor{address: address, http: http.Client{Transport: transport}}, nil
}

func (f *floor) do(ctx context.Context, method, path, token string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, f.address+"/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("the floor: %w", err)
	}
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the floor: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s answered %s", path, resp.Status)
	}
	return answer, err
}

// login logs a pod in and keeps the token for revoke.
func (f *floor) login(ctx context.Context, p *pod, role string) (string, error) {
	body, err := json.Marshal(map[string]string{"role": role, "jwt": p.jwt})
	if err != nil {
		return "", fmt.Errorf("the floor: %w", err)
	}
	answer, err := f.do(ctx, http.MethodPut, "auth/kubernetes/login", "", body)
	if err != nil {
		return "", err
	}
	var login struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	if err := json.Unmarshal(answer, &login); err != nil || login.Auth.Token == "" {
		return "", errors.New("the floor: the login brought no token")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens = append(f.tokens, login.Auth.Token)
	return login.Auth.Token, nil
}

// mount logs in and reads, and returns how long that took. atOnce bounds the reads under way; zero for no bound.
func (f *floor) mount(ctx context.Context, p *pod, w wish, atOnce int) (time.Duration, error) {
	start := time.Now()
	token, err := f.login(ctx, p, w.role)
	if err != nil {
		return 0, err
	}
	if len(w.paths) == 1 {
		_, err = f.do(ctx, http.MethodGet, w.paths[0], token, nil)
		return time.Since(start), err
	}
	group, ctx := errgroup.WithContext(ctx)
	if atOnce > 0 {
		group.SetLimit(atOnce)
	}
	for _, path := range w.paths {
		group.Go(func() error { _, err := f.do(ctx, http.MethodGet, path, token, nil); return err })
	}
	err = group.Wait()
	return time.Since(start), err
}

// revoke gives back every token of the floor's logins.
func (f *floor) revoke(ctx context.Context) error {
	f.mu.Lock()
	tokens := f.tokens
	f.tokens = nil
	f.mu.Unlock()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(crowd)
	for _, token := range tokens {
		group.Go(func() error {
			_, err := f.do(ctx, http.MethodPut, "auth/token/revoke-self", token, nil)
			return err
		})
	}
	return group.Wait()
}
