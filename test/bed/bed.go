// Package bed runs the real parts that Leasehold works between, on one machine and without a container registry:
// etcd, the Kubernetes API server and its controllers, Vault, PostgreSQL, the Secrets Store CSI driver and Leasehold
// itself.
//
// # Two forms
//
// The full form ([Full], root) adds kubelet, containerd and runc, and runs the driver from its own DaemonSet and
// Leasehold from manifests/base. containerd, kubelet and all containers live in a mount and a process namespace of
// their own, whose /run is a tmpfs and whose /var/lib/kubelet is a folder of the bed: one kill ends them all, and no
// mount of theirs is ever seen by the machine. The API server listens on the cluster's own service address, which is
// an address of the bed's bridge, so no packet needs rewriting and no rule is left behind.
//
// The light form ([Light], any user) has no containers: the driver's node server and a stand-in for kubelet run in one
// process, volumes are plain folders, and Leasehold is a process. Pods exist only as API objects.
//
// A third form ([Kind]) is the full one in a cluster that kind makes, where Docker and kind exist. Parts that are
// containers of kind's, the API server and kubelet, cannot be stopped in it.
//
// # Life
//
// [Up] starts a bed and returns when every part answers. Its servers outlive the program that started them; [Open]
// finds them again, and [Bed.Down] removes everything: also what a crashed or killed Up left.
package bed

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/leasehold-csi/leasehold/test/bed/tool"
)

// Form is the kind of a bed.
type Form string

// The forms; see the package's documentation.
const (
	Light Form = "light"
	Full  Form = "full"
	// Kind is the full form in a cluster that kind makes in Docker, with Vault and PostgreSQL beside it.
	Kind Form = "kind"
)

// Options says which bed [Up] makes.
type Options struct {
	Form Form
	// Dir holds the bed; empty is [DefaultDir]. Its name decides the names of links and cgroups, so that beds in
	// different folders do not collide.
	Dir string
	// Log receives the progress, for people; nil discards it.
	Log io.Writer
	// Provider is the path of a static `leasehold` binary; empty makes a bed without a provider, in which the
	// driver finds the folder for its socket, empty.
	Provider string
	// NoDatabase leaves PostgreSQL out, and Vault's database engine with it. The light form then needs nothing but Go.
	NoDatabase bool
	// Traces runs OpenTelemetry's collector, and the provider sends its traces there; in the light form only.
	Traces bool
}

// Bed is a running test bed. Its methods are safe for concurrent use.
type Bed struct {
	root     string // the project's top folder
	database bool
	progress *progress
	traces   bool // a collector is to be run
	config   *rest.Config
	client   kubernetes.Interface

	mu    sync.Mutex // guards what changes after Up: state.Processes
	state *State
}

// DefaultDir is where a bed of this form is when nobody says otherwise.
func DefaultDir(form Form) string {
	return filepath.Join(os.TempDir(), "leasehold-bed-"+string(form))
}

// Up makes a bed, after removing what an earlier one left in the same folder, also a running one. It returns when
// every part is ready; when it fails, the parts that did start are left for their logs to be read, until [Bed.Down] or
// the next Up. A machine that cannot run this form gives a [MissingError].
func Up(ctx context.Context, options Options) (*Bed, error) {
	if !options.NoDatabase {
		if err := CanRun(options.Form); err != nil {
			return nil, err
		}
	}
	b, err := create(options)
	if err != nil {
		return nil, err
	}
	if err := b.Down(ctx); err != nil {
		return nil, fmt.Errorf("cleaning what an earlier bed left: %w", err)
	}
	b.progress.note("%s test bed in %s", b.state.Form, b.state.Dir)
	if err := b.buildTools(ctx); err != nil {
		return nil, err
	}
	if err := b.makeFolders(); err != nil {
		return nil, err
	}
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state.Ready = true
	return b, b.state.save()
}

// Build compiles all that a bed of this form needs, so that Up finds it.
func Build(ctx context.Context, options Options) error {
	b, err := create(options)
	if err != nil {
		return err
	}
	return b.buildTools(ctx)
}

// Open returns the bed in dir: a running one, or the rest of one that did not come up or was not taken down, which
// [State.Ready] and [Bed.Down] are for. Without one the error is [ErrNoBed].
func Open(dir string) (*Bed, error) {
	state, err := load(dir)
	if err != nil {
		return nil, err
	}
	root, err := projectRoot()
	if err != nil {
		return nil, err
	}
	b := &Bed{root: root, progress: newProgress(nil), state: state}
	if state.Ready {
		err = b.connect()
	}
	return b, err
}

func create(options Options) (*Bed, error) {
	root, err := projectRoot()
	if err != nil {
		return nil, err
	}
	dir := options.Dir
	if dir == "" {
		dir = DefaultDir(options.Form)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("finding the bed's folder: %w", err)
	}
	b := &Bed{root: root, database: !options.NoDatabase, progress: newProgress(options.Log), traces: options.Traces && options.Form == Light}
	b.state = &State{Form: options.Form, Dir: dir, Programs: map[string]string{}, Processes: map[string]*process{}}
	b.state.Kubeconfig = b.path("kubeconfig")
	b.state.Logs = b.path("logs")
	if options.Provider != "" {
		if b.state.Provider.Binary, err = filepath.Abs(options.Provider); err != nil {
			return nil, fmt.Errorf("finding the provider: %w", err)
		}
	}
	return b, nil
}

// projectRoot walks up from the working directory to the main module's go.mod.
func projectRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the project: %w", err)
	}
	for {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(content), "module github.com/leasehold-csi/leasehold\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("finding the project: run this inside the leasehold checkout")
		}
		dir = filepath.Dir(dir)
	}
}

// makeFolders writes bed.json first: without it Down takes the folder for somebody else's.
func (b *Bed) makeFolders() error {
	// Others may pass through but not list: PostgreSQL runs as a user of its own below this folder.
	if err := os.MkdirAll(b.state.Dir, 0o711); err != nil {
		return fmt.Errorf("making the bed's folder: %w", err)
	}
	entries, err := os.ReadDir(b.state.Dir)
	if err != nil {
		return fmt.Errorf("reading the bed's folder: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s holds something that is not a test bed", b.state.Dir)
	}
	if err := b.state.save(); err != nil {
		return err
	}
	for _, dir := range []string{"logs", "tmp", "pki", "etcd", "vault", "postgres", "kubelet", "providers", "manifests", "images"} {
		if err := os.Mkdir(b.path(dir), 0o711); err != nil {
			return fmt.Errorf("making the bed's folders: %w", err)
		}
	}
	// Servers of different users put their temporary files here.
	if err := os.Chmod(b.path("tmp"), 0o777|os.ModeSticky); err != nil {
		return fmt.Errorf("making the bed's folders: %w", err)
	}
	return nil
}

func (b *Bed) buildTools(ctx context.Context) error {
	cache, err := tool.Cache()
	if err != nil {
		return err
	}
	modules := []tool.Module{tool.Etcd, tool.Kubernetes, tool.Vault, tool.Driver}
	if b.state.Form != Light {
		modules = append(modules, tool.App, tool.Image, tool.Helm)
	}
	if b.traces {
		modules = append(modules, tool.Collector)
	}
	for _, module := range modules {
		err := b.progress.step("build "+module.Name, func() (string, error) {
			programs, err := module.Build(ctx, b.root, cache, b.progress)
			b.state.Programs[module.Name] = programs
			return programs, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// State returns what bed.json holds.
func (b *Bed) State() *State { return b.state }

// Client returns an administrator's client of the bed's API server.
func (b *Bed) Client() kubernetes.Interface { return b.client }

// RESTConfig returns an administrator's access to the bed's API server.
func (b *Bed) RESTConfig() *rest.Config { return rest.CopyConfig(b.config) }

func (b *Bed) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", b.state.Kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the bed's kubeconfig: %w", err)
	}
	// Tests wait for the cluster, never for their own client's rate limit.
	config.QPS, config.Burst = 500, 1000
	b.config = config
	if b.client, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("making the bed's client: %w", err)
	}
	return nil
}

func (b *Bed) path(elements ...string) string {
	return filepath.Join(append([]string{b.state.Dir}, elements...)...)
}

func (b *Bed) log(name string) string { return b.path("logs", name+".log") }

// program returns the path of a program built from a module below test/tools.
func (b *Bed) program(module tool.Module, name string) string {
	return filepath.Join(b.state.Programs[module.Name], name)
}

func (b *Bed) process(name string) *process {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Processes[name]
}

// digest is a short name for the bed's folder, for what has a name outside of it.
func (b *Bed) digest() string {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(b.state.Dir))
	return fmt.Sprintf("%08x", sum.Sum32())
}

// freePort asks the kernel for a port of the bed's address that nobody uses.
func (b *Bed) freePort() (int, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(b.state.Host, "0"))
	if err != nil {
		return 0, fmt.Errorf("finding a free port: %w", err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// patience is how long a server may take for an orderly end.
const patience = 15 * time.Second
