// Package server runs what listens: unix sockets that only root reaches, the driver's calls, and the HTTP end points for health
// and metrics.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

// Socket is a path that we listen at, such as the provider's place in the driver's folder. It is bound under another name and then renamed, so that the path
// always leads to somebody who listens. It outlives its process, whose callers wait there for the next one; only that of a provider which
// is taken away for good is removed.
type Socket struct {
	path string

	mu sync.Mutex
	id fileID // of the socket that we bound last
}

type fileID struct{ dev, ino uint64 }

// NewSocket returns the socket for a path; nothing is bound yet.
func NewSocket(path string) *Socket { return &Socket{path: path} }

// Bind listens at the path, taking the place of whatever is there. Only root and our own user are let in.
func (s *Socket) Bind() (net.Listener, error) {
	dir, name := filepath.Split(s.path)
	temporary := filepath.Join(dir, fmt.Sprintf(".%s.%d", name, os.Getpid()))
	_ = os.Remove(temporary) // of a process that had our pid
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("binding a socket in %s: %w", dir, err)
	}
	l.SetUnlinkOnClose(false)
	if err := s.publish(temporary); err != nil {
		_ = l.Close()
		_ = os.Remove(temporary)
		return nil, err
	}
	return trusted{l}, nil
}

func (s *Socket) publish(temporary string) error {
	if err := os.Chmod(temporary, 0o600); err != nil {
		return fmt.Errorf("closing a socket to others: %w", err)
	}
	id, err := identify(temporary)
	if err != nil {
		return fmt.Errorf("looking at a socket: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(temporary, s.path); err != nil {
		return fmt.Errorf("moving a socket into place: %w", err)
	}
	s.id = id
	return nil
}

// Remove takes the path away if it still leads to us. Nobody may listen there any more.
func (s *Socket) Remove() error {
	id, err := identify(s.path)
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, os.ErrNotExist) || err == nil && id != s.id {
		return nil
	}
	if err == nil {
		err = os.Remove(s.path)
	}
	if err != nil {
		return fmt.Errorf("removing a socket: %w", err)
	}
	return nil
}

// Errors of Check.
var (
	errGone    = errors.New("the provider's socket is gone from the driver's folder")
	errForeign = errors.New("another provider listens in our place")
)

// Check tells whether the path still leads to us: nil, errGone when it leads to nobody, errForeign when it leads to somebody
// else who answers.
func (s *Socket) Check(ctx context.Context) error {
	id, err := identify(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return errGone
	}
	if err != nil {
		return fmt.Errorf("looking at a socket: %w", err)
	}
	s.mu.Lock()
	ours := id == s.id
	s.mu.Unlock()
	if ours {
		return nil
	}
	who, err := s.whoAnswers(ctx)
	if err != nil {
		return errGone
	}
	return fmt.Errorf("%w at %s: %s; two providers are set up for one name", errForeign, s.path, who)
}

// whoAnswers asks whoever listens at the path for a name.
func (s *Socket) whoAnswers(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", s.path)
	if err != nil {
		return "", fmt.Errorf("nobody listens: %w", err)
	}
	_ = conn.Close()
	client, err := grpc.NewClient("unix://"+s.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", fmt.Errorf("asking who listens: %w", err)
	}
	defer func() { _ = client.Close() }()
	version, err := v1alpha1.NewCSIDriverProviderClient(client).Version(ctx, &v1alpha1.VersionRequest{Version: "v1alpha1"})
	if err != nil {
		return "somebody who does not tell a name", nil
	}
	return fmt.Sprintf("%.40q, version %.40q", version.GetRuntimeName(), version.GetRuntimeVersion()), nil
}

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return fileID{dev: st.Dev, ino: st.Ino}, nil
}

// trusted lets in only peers that run as root or as our own user: the request carries service account tokens, and the answer
// secrets.
type trusted struct{ *net.UnixListener }

func (t trusted) Accept() (net.Conn, error) {
	for {
		conn, err := t.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if peerTrusted(conn) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

func peerTrusted(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	if err := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || peer == nil {
		return false
	}
	return peer.Uid == 0 || int(peer.Uid) == os.Geteuid()
}
