// Package prometheus runs a real Prometheus, Debian's, on loopback with the rules of manifests/monitoring, and says what these and the
// dashboard ask for.
package prometheus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// configuration scrapes and evaluates every second, so that what a provider says is known at once. The `for` of the alerts stays what
	// it is: until it is over an alert is pending.
	configuration = `
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yaml]
scrape_configs:
  - job_name: leasehold
    file_sd_configs: [{files: [targets.json]}]
`
	// readyWithin is far above what a slow machine needs.
	readyWithin = time.Minute
)

// Server is a running Prometheus.
type Server struct {
	url   string
	dir   string
	end   context.CancelFunc
	ended chan struct{} // closed when the process is over
	how   error         // it ended
}

// program finds one of Debian's package.
func program(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is missing: apt-get install -y --no-install-recommends prometheus (%w)", name, err)
	}
	return path, nil
}

// Start runs a Prometheus that keeps its data in a folder, which must be there, and evaluates a file of rules. It scrapes nothing until
// it is told what. It ends with ctx at the latest; who starts it calls Stop.
func Start(ctx context.Context, dir string, rules []byte) (*Server, error) {
	binary, err := program("prometheus")
	if err != nil {
		return nil, err
	}
	for name, text := range map[string][]byte{"prometheus.yaml": []byte(configuration), "rules.yaml": rules, "targets.json": []byte("[]")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return nil, fmt.Errorf("configuring Prometheus: %w", err)
		}
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "prometheus.log"))
	if err != nil {
		return nil, fmt.Errorf("opening Prometheus's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	running, end := context.WithCancel(ctx)
	cmd := exec.CommandContext(running, binary, "--config.file="+filepath.Join(dir, "prometheus.yaml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		end()
		return nil, fmt.Errorf("starting Prometheus: %w", err)
	}
	s := &Server{url: "http://" + address, dir: dir, end: end, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		s.how = cmd.Wait()
	}()
	if err := s.await(ctx); err != nil {
		s.Stop()
		return nil, fmt.Errorf("starting Prometheus, whose log is %s: %w", log.Name(), err)
	}
	return s, nil
}

func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

// await asks until it is ready.
func (s *Server) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		resp, err := s.get(ctx, "/-/ready")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-s.ended:
			return fmt.Errorf("it ended: %w", s.how)
		case <-ctx.Done():
			return err
		case <-ticker.C:
		}
	}
}

// Scrape has the provider of a node, whose metrics are at host:port, scraped from now on, and nothing else.
func (s *Server) Scrape(node, address string) error {
	targets, err := json.Marshal([]map[string]any{{"targets": []string{address}, "labels": map[string]string{"node": node}}})
	if err != nil {
		return err
	}
	fresh := filepath.Join(s.dir, "targets.json.new") // Prometheus must not read half of it
	if err := os.WriteFile(fresh, targets, 0o600); err != nil {
		return fmt.Errorf("telling Prometheus what to scrape: %w", err)
	}
	return os.Rename(fresh, filepath.Join(s.dir, "targets.json"))
}

// Active is an alert whose expression is true.
type Active struct {
	Labels, Annotations map[string]string
	// State is pending, while the rule's `for` is not over, or firing.
	State string
}

// Alerts are those that are active.
func (s *Server) Alerts(ctx context.Context) ([]Active, error) {
	var found struct {
		Alerts []Active `json:"alerts"`
	}
	err := s.ask(ctx, "/api/v1/alerts", &found)
	return found.Alerts, err
}

// Sample is one of the values of an expression.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// Query evaluates an expression whose value is a vector.
func (s *Server) Query(ctx context.Context, expr string) (samples []Sample, err error) {
	var found struct {
		Result []struct {
			Metric map[string]string  `json:"metric"`
			Value  [2]json.RawMessage `json:"value"` // when, and a number in quotes
		} `json:"result"`
	}
	if err := s.ask(ctx, "/api/v1/query?"+url.Values{"query": {expr}}.Encode(), &found); err != nil {
		return nil, fmt.Errorf("evaluating %s: %w", expr, err)
	}
	for _, r := range found.Result {
		var text string
		if err := json.Unmarshal(r.Value[1], &text); err != nil {
			return nil, fmt.Errorf("reading the value of %s: %w", expr, err)
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("reading the value of %s: %w", expr, err)
		}
		samples = append(samples, Sample{Labels: r.Metric, Value: value})
	}
	return samples, nil
}

// ask decodes what an answer of the API holds.
func (s *Server) ask(ctx context.Context, path string, data any) error {
	resp, err := s.get(ctx, path)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer := struct {
		Error string `json:"error"`
		Data  any    `json:"data"`
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("reading Prometheus's answer, %s: %w", resp.Status, err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

func (s *Server) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(req)
}

// Stop ends it and waits for that.
func (s *Server) Stop() {
	s.end()
	<-s.ended
}
