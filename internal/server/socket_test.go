package server_test

import (
	"context"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/server"
)

// socketPath is in a folder that other users may enter, with a name short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "leasehold-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "vault.sock")
}

// bind listens and greets whoever is let in, until the test ends.
func bind(t *testing.T, s *server.Socket, greeting string) net.Listener {
	t.Helper()
	l, err := s.Bind()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, greeting)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l
}

// greeting is what whoever listens at the path says.
func greeting(path string) string {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	text, _ := io.ReadAll(conn)
	return string(text)
}

// stale leaves a socket file that nobody listens at.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
}

func TestBind(t *testing.T) {
	tests := map[string]func(*testing.T, string){
		"nothing there": func(*testing.T, string) {},
		"stale socket":  stale,
		"plain file": func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"an earlier process": func(t *testing.T, path string) { bind(t, server.NewSocket(path), "earlier") },
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			before(t, path)
			s := server.NewSocket(path)
			bind(t, s, "ours")
			if got := greeting(path); got != "ours" {
				t.Errorf("at the path: %q", got)
			}
			if err := s.Check(t.Context()); err != nil {
				t.Errorf("Check: %v", err)
			}
			files, err := os.ReadDir(filepath.Dir(path))
			if err != nil || len(files) != 1 {
				t.Errorf("the folder holds %v, %v", files, err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
}

func TestBindFailure(t *testing.T) {
	path := socketPath(t)
	if err := os.Mkdir(path, 0o755); err != nil { // a socket cannot take its place
		t.Fatal(err)
	}
	if _, err := server.NewSocket(path).Bind(); err == nil || !strings.Contains(err.Error(), "moving a socket into place") {
		t.Errorf("error %v", err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("the folder holds %v, %v", files, err)
	}
}

func TestSocketStaysAtExit(t *testing.T) {
	path := socketPath(t)
	earlier := bind(t, server.NewSocket(path), "earlier")
	bind(t, server.NewSocket(path), "next")
	_ = earlier.Close()
	if got := greeting(path); got != "next" {
		t.Errorf("the earlier process's exit left at the path: %q", got)
	}
}

// TestRemove: a socket is taken away by who bound it, and by nobody else.
func TestRemove(t *testing.T) {
	path := socketPath(t)
	ours, theirs := server.NewSocket(path), server.NewSocket(path)
	bind(t, ours, "ours")
	bind(t, theirs, "theirs")
	if err := ours.Remove(); err != nil {
		t.Error(err)
	}
	if got := greeting(path); got != "theirs" {
		t.Errorf("another's socket was taken away: %q", got)
	}
	for range 2 {
		if err := theirs.Remove(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestCheck(t *testing.T) {
	const gone = "the provider's socket is gone from the driver's folder"
	tests := map[string]struct {
		change func(*testing.T, string)
		want   string
	}{
		"removed": {func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, gone},
		"replaced by nobody": {func(t *testing.T, path string) {
			_ = os.Rename(path, path+".old") // keeps its inode from being used again
			stale(t, path)
		}, gone},
		"taken over": {func(t *testing.T, path string) { bind(t, server.NewSocket(path), "other") },
			"another provider listens in our place at PATH: somebody who does not tell a name; two providers are set up for one name"},
		"taken over by a provider": {func(t *testing.T, path string) {
			l, err := server.NewSocket(path).Bind()
			if err != nil {
				t.Fatal(err)
			}
			other := grpc.NewServer()
			v1alpha1.RegisterCSIDriverProviderServer(other, named{})
			go func() { _ = other.Serve(l) }()
			t.Cleanup(other.Stop)
		}, `another provider listens in our place at PATH: "peer", version "1.7"; two providers are set up for one name`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			s := server.NewSocket(path)
			bind(t, s, "ours")
			test.change(t, path)
			if err := s.Check(t.Context()); err == nil || err.Error() != strings.ReplaceAll(test.want, "PATH", path) {
				t.Errorf("Check: %v, want %s", err, test.want)
			}
			bind(t, s, "ours again")
			if got := greeting(path); got != "ours again" || s.Check(t.Context()) != nil {
				t.Errorf("bound again, at the path: %q; Check: %v", got, s.Check(t.Context()))
			}
		})
	}
}

type named struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
}

func (named) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{RuntimeName: "peer", RuntimeVersion: "1.7"}, nil
}

// TestOtherUsersAreTurnedAway opens the file's mode, so that only the check of the peer is left. Only root can be somebody
// else; for all others the mode is tested above.
func TestOtherUsersAreTurnedAway(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	path := socketPath(t)
	bind(t, server.NewSocket(path), "secret")
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, whose user is another now, ends with the goroutine
		const nobody, same = 65534, ^uintptr(0)
		if _, _, err := unix.RawSyscall(unix.SYS_SETRESUID, same, nobody, same); err != 0 {
			got <- "becoming nobody: " + err.Error()
			return
		}
		got <- greeting(path)
	}()
	if text := <-got; text != "" {
		t.Errorf("somebody else is told %q", text)
	}
	if text := greeting(path); text != "secret" {
		t.Errorf("root is told %q", text)
	}
}
