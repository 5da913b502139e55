package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/audit"
	"github.com/leasehold-csi/leasehold/internal/grant"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/kube"
	"github.com/leasehold-csi/leasehold/internal/page"
	"github.com/leasehold-csi/leasehold/internal/pods"
	"github.com/leasehold-csi/leasehold/internal/server"
	"github.com/leasehold-csi/leasehold/internal/store"
	"github.com/leasehold-csi/leasehold/internal/vault"
	"github.com/leasehold-csi/leasehold/provider"
)

// openbaoSocket is the name of the socket that the driver calls for classes that say provider: openbao.
const openbaoSocket = "openbao.sock"

// drainLimit bounds the wait for logins and reads at shutdown; Vault itself gives none more than 90 s.
const drainLimit = grant.RequestLimit

// serve runs the provider until ctx ends.
func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseServe(args, stderr)
	if err != nil {
		return err
	}
	if o.version {
		return writeVersion(stdout, o.output)
	}
	log := logger(o.logLevel, o.logFormat, stderr)
	klog.SetSlogLogger(log)
	for _, notice := range o.notices {
		log.Warn("a flag of the existing provider", "notice", notice)
	}
	if err := mounted(o); err != nil {
		return err
	}
	if err := clearVaultEnvironment(); err != nil {
		return err
	}
	records, err := audit.Open(o.auditLog, o.node, stdout, log)
	if err != nil {
		return err
	}
	ledger, err := openStore(ctx, o, log)
	if err != nil {
		return err
	}
	tracer, stopTraces := startTraces(ctx, o.node, log)
	defer stopTraces()
	node, err := wire(o, ledger, records, tracer, log)
	if err == nil {
		err = node.run(ctx)
	}
	if err == nil && node.keeper.Emptied() {
		log.Info("drained: nothing is left on this node for another process")
		return errors.Join(node.removeSockets(), ledger.Remove())
	}
	return errors.Join(err, ledger.Close())
}

// mounted says which volume of the provider's pod is missing.
func mounted(o options) error {
	var missing error
	look := func(folder, flag, what string) {
		if info, err := os.Stat(folder); err != nil || !info.IsDir() {
			missing = errors.Join(missing, fmt.Errorf("%s: the folder %s is not there: the provider's pod must mount %s (%w)", flag, folder, what, cmp.Or(err, error(unix.ENOTDIR))))
		}
	}
	for _, endpoint := range o.endpoints {
		look(filepath.Dir(endpoint), "--endpoint", "the driver's folder of providers, /var/run/secrets-store-csi-providers on the host")
	}
	if o.kubeletDir != "" {
		look(filepath.Join(o.kubeletDir, "pods"), "--kubelet-dir", "kubelet's folder of pods, read-only, with mountPropagation: HostToContainer; --no-kubelet-dir does without it")
	}
	return missing
}

func openStore(ctx context.Context, o options, log *slog.Logger) (*store.Store, error) {
	s, err := store.Open(ctx, store.Config{
		Dir: o.stateDir, AllowDisk: o.allowDisk, MaxBytes: o.stateMax, KubeletDir: o.kubeletDir, Now: bootTime,
		Waiting: func() { log.Info("waiting for the process that holds the store", "dir", o.stateDir) },
	})
	if err == nil && s.Damaged().File != "" {
		log.Error("the store could not be read and was set aside; what of its ledger was still whole is taken over, the rest runs out by itself",
			"file", s.Damaged().File, "records", s.Damaged().Carried)
	}
	return s, err
}

// node is everything that runs.
type node struct {
	options
	log     *slog.Logger
	client  kubernetes.Interface
	rights  []kube.Right
	meters  meters
	cluster *kube.Cluster
	judge   *pods.Judge
	key     *kube.SharedKey
	keeper  *keeper.Keeper
	history *admin.History
	drivers []*server.Server // one for each endpoint
	admin   *server.Socket
	sockets []*server.Socket // all of them
	health  server.Health
}

// wire builds everything; nothing runs yet.
func wire(o options, ledger *store.Store, records *audit.Log, tracer trace.Tracer, log *slog.Logger) (*node, error) {
	meters := newMeters()
	api, err := connect(o.kubeconfig, meters.apiRequests.Answered)
	if err != nil {
		return nil, err
	}
	cluster := kube.New(kube.Config{Client: api.client, EventClient: api.events, Classes: api.classes, Node: o.node, Log: log})
	key := kube.NewSharedKey(kube.SharedKeyConfig{Client: api.client, Namespace: api.namespace, Name: o.keySecret, Log: log, Found: func(key []byte) {
		if err := ledger.SetVersionKey(key); err != nil {
			log.Warn("the next process may begin with other object versions", "err", err)
		}
	}})
	judge := pods.New(pods.Config{Cluster: cluster, KubeletDir: o.kubeletDir, Now: bootTime, Log: log})
	history := admin.NewHistory(ledger.Interrupted())
	k, err := keeper.New(keeper.Config{
		Store: ledger, Vaults: &vault.Pool{Answered: meters.vaultRequests.Answered}, Ended: judge.Ended, Event: meters.events.Count(cluster.Event),
		Changed: func(c keeper.Change) { history.Add(c); records.Add(c) }, Now: bootTime, Log: log,
		OrphanTTL: o.orphanTTL, Revoke: o.revoke, SubPath: cluster.SubPath, Overrides: cluster.Overrides, Synced: cluster.SyncedObjects,
		RequestToken: cluster.RequestToken, Identify: cluster.Identify, Sees: judge.Sees, Tracer: tracer,
		RenewalBegan: meters.renewalBegan, Rotated: meters.rotated,
	})
	if err != nil {
		return nil, err
	}
	cluster.OnPod(k.Wake)
	cluster.OnSynced(k.WakeAll)
	judge.OnUnmount(k.Wake)
	var sockets []*server.Socket
	var drivers []*server.Server
	for _, endpoint := range o.endpoints {
		defaults := o.vault
		if filepath.Base(endpoint) == openbaoSocket {
			defaults = o.openbao
		}
		socket := server.NewSocket(endpoint)
		driver, err := server.New(server.Config{
			Socket: socket,
			Service: provider.New(provider.Config{
				Keeper: k, Defaults: defaults, VersionKey: ledger.VersionKey, Version: version, Refused: meters.refused,
			}),
			Leave:   k.Leave,
			Metrics: meters.registry,
			Log:     log,
			Tracer:  tracer,
		})
		if err != nil {
			return nil, err
		}
		sockets, drivers = append(sockets, socket), append(drivers, driver)
	}
	ready := readiness(cluster, sockets)
	meters.registry.MustRegister(records.Failures, admin.Metrics{
		List: k.Grants, Usage: ledger.Usage, LeftToExpire: k.LeftToExpire, EndHeld: judge.Held, BreakerOpen: k.BreakerOpen, Ready: ready, Now: bootTime,
	})
	adminSocket := server.NewSocket(admin.SocketPath(o.stateDir))
	return &node{options: o, log: log, admin: adminSocket, sockets: append(sockets, adminSocket),
		client: api.client, rights: kube.Rights(o.node, api.namespace, o.keySecret), meters: meters,
		cluster: cluster, judge: judge, key: key, keeper: k, history: history, drivers: drivers,
		health: server.Health{Addr: o.healthAddr, Alive: k.Alive, Ready: ready, Metrics: meters.registry}}, nil
}

// readiness returns what says what is missing before Mounts can be answered; nil when nothing is.
func readiness(cluster *kube.Cluster, sockets []*server.Socket) func(context.Context) error {
	return func(ctx context.Context) error {
		if !cluster.Synced() {
			return errors.New("the pods of this node are not listed yet: is the Kubernetes API reachable, and may the provider list pods?")
		}
		var err error
		for _, socket := range sockets {
			err = errors.Join(err, socket.Check(ctx))
		}
		return err
	}
}

// run serves until ctx ends. Then no call is taken any more, waiting ones are answered, logins and reads come to their end, and
// the rest stops. Nothing is revoked: the next process takes over.
func (n *node) run(ctx context.Context) error {
	if err := n.keeper.Resume(); err != nil {
		return err
	}
	adminSocket, err := n.admin.Bind()
	if err != nil {
		return err
	}
	n.key.Read(ctx) // before the first answer, whose versions would change with it
	told := admin.Provider{
		Node: n.node, Version: version, List: n.keeper.Grants, LeftToExpire: n.keeper.LeftToExpire, History: n.history, BreakerOpen: n.keeper.BreakerOpen, Now: bootTime,
		GiveBack: n.keeper.GiveBack, RevokePod: n.keeper.RevokePod,
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, background := errgroup.WithContext(background)
	group.Go(func() error { return n.cluster.Run(background) })
	group.Go(func() error {
		kube.FollowMissing(background, n.client, n.rights, func(missing []kube.Right) { n.meters.missingRights.Set(float64(len(missing))) }, n.log)
		return nil
	})
	group.Go(func() error { return n.judge.Run(background) })
	group.Go(func() error { return n.key.Run(background) })
	group.Go(func() error { return n.keeper.Run(background) })
	group.Go(func() error { return n.health.Run(background) })
	group.Go(func() error { return server.ServeHTTP(background, adminSocket, admin.Handler(told)) })
	if n.uiAddr != "" {
		group.Go(func() error { return server.ServeTCP(background, n.uiAddr, page.Handler(admin.Reports(told))) })
	}
	group.Go(func() error {
		defer stop()
		listening, unlisten := either(ctx, background)
		defer unlisten()
		n.log.Info("serving", "endpoints", n.endpoints, "node", n.node, "version", version)
		serving, listening := errgroup.WithContext(listening)
		for _, driver := range n.drivers {
			serving.Go(func() error { return driver.Run(listening) })
		}
		err := serving.Wait()
		n.log.Info("leaving: waiting for logins and reads")
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainLimit)
		defer cancel()
		return errors.Join(err, n.keeper.Drain(limited))
	})
	return group.Wait()
}

// removeSockets takes away where nobody listens any more, so that the driver does not wait there for a next process. The store's lock must
// still be held.
func (n *node) removeSockets() (err error) {
	for _, socket := range n.sockets {
		err = errors.Join(err, socket.Remove())
	}
	return err
}

// either returns a context that ends with the first of two.
func either(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(a)
	stop := context.AfterFunc(b, cancel)
	return ctx, func() { stop(); cancel() }
}

// bootTime reads CLOCK_BOOTTIME, which counts through suspends and never jumps.
func bootTime() grant.Instant {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("leasehold: this kernel has no CLOCK_BOOTTIME: " + err.Error())
	}
	return grant.Instant(time.Duration(t.Nano()))
}
