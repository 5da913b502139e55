// Package audit writes down, for compliance, what was done with credentials in a pod's name: one line of JSON for each login, read, renewal,
// rotation and revocation, whether it went well or not. No secret is in it, and nothing by which one could be used: no token, accessor, lease
// id or serial number.
package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leasehold-csi/leasehold/internal/keeper"
)

// Stdout is the path that stands for the standard output.
const Stdout = "-"

// recordVersion changes when a field changes its meaning or goes; fields are added without.
const recordVersion = 1

// record is one line.
type record struct {
	Version        int       `json:"version"`
	Time           time.Time `json:"time"`
	Node           string    `json:"node"`
	Action         string    `json:"action"`
	Outcome        string    `json:"outcome"`
	Namespace      string    `json:"namespace"`
	Pod            string    `json:"pod"`
	UID            string    `json:"uid"`
	ServiceAccount string    `json:"serviceAccount,omitempty"`
	Volume         string    `json:"volume"`
	Class          string    `json:"class,omitempty"`
	Grant          string    `json:"grant,omitempty"`
	Vault          string    `json:"vault,omitempty"`
	VaultNamespace string    `json:"vaultNamespace,omitempty"`
	AuthMount      string    `json:"authMount,omitempty"`
	Role           string    `json:"role,omitempty"`
	Path           string    `json:"path,omitempty"`
	TTL            int64     `json:"ttlSeconds,omitempty"`
	Request        string    `json:"requestId,omitempty"`
	Reason         string    `json:"reason,omitempty"`
}

// outcomes of an action.
const (
	ok     = "ok"
	failed = "failed"
)

// acts are what a change is in a record. Changes that are none of what was done with credentials have no record.
var acts = map[keeper.Kind]struct{ action, outcome string }{
	keeper.LoggedIn:           {"login", ok},
	keeper.LoginFailed:        {"login", failed},
	keeper.Issued:             {"issue", ok},
	keeper.Rotated:            {"rotate", ok},
	keeper.Refreshed:          {"refresh", ok},
	keeper.ReadFailed:         {"read", failed},
	keeper.MountRefused:       {"mount", failed},
	keeper.Mounted:            {"mount", ok},
	keeper.Renewed:            {"renew", ok},
	keeper.RenewalFailed:      {"renew", failed},
	keeper.RenewalOver:        {"renew", "refused"},
	keeper.PodEnded:           {"release", ok},
	keeper.LetGo:              {"release", ok},
	keeper.CertificateRevoked: {"revoke", ok},
	keeper.Revoked:            {"revoke", ok},
	keeper.RevocationFailed:   {"revoke", failed},
	keeper.RanOut:             {"revoke", "expired"},
	keeper.AlreadyGone:        {"revoke", "elsewhere"},
	keeper.Lost:               {"revoke", "elsewhere"},
}

// Log is an audit log. Its zero value is not usable.
type Log struct {
	// Failures counts the records that could not be written.
	Failures prometheus.Counter

	path   string
	node   string
	stdout io.Writer
	log    *slog.Logger
}

// Open returns the audit log of a node in a file, which is made if it is not there and appended to, or at Stdout. An empty path is for none.
func Open(path, node string, stdout io.Writer, log *slog.Logger) (*Log, error) {
	l := &Log{path: path, node: node, stdout: stdout, log: log, Failures: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "leasehold_audit_failures_total", Help: "Records of the audit log that could not be written.",
	})}
	if err := l.write(nil); err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	return l, nil
}

// Add writes the record of a change, if it has one. What cannot be written is logged and counted, and holds nothing up.
func (l *Log) Add(c keeper.Change) {
	act, is := acts[c.Kind]
	if !is || l.path == "" {
		return
	}
	line, err := json.Marshal(record{
		Version: recordVersion, Time: c.At.UTC(), Node: l.node, Action: act.action, Outcome: act.outcome,
		Namespace: c.Pod.Namespace, Pod: c.Pod.Name, UID: c.Pod.UID, ServiceAccount: c.Pod.ServiceAccount, Volume: c.Volume, Class: c.Class, Grant: c.Grant,
		Vault: c.Server.Address, VaultNamespace: c.Namespace, AuthMount: c.Auth.Mount, Role: c.Auth.Role, Path: c.Path, TTL: int64(c.TTL / time.Second),
		Request: c.Request, Reason: c.Why,
	})
	if err == nil {
		err = l.write(append(line, '\n'))
	}
	if err != nil {
		l.Failures.Inc()
		l.log.Error("writing the audit log", "err", err, "action", act.action, "pod", c.Pod.Namespace+"/"+c.Pod.Name)
	}
}

// write opens the file anew each time, so that one that was renamed or removed is made again. One write to a file that is appended to is not
// torn by another.
func (l *Log) write(line []byte) error {
	switch l.path {
	case "":
		return nil
	case Stdout:
		_, err := l.stdout.Write(line)
		return err
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(line)
	if closing := f.Close(); err == nil {
		err = closing
	}
	return err
}
