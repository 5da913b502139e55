package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-csi/leasehold/test/bed"
)

const (
	ending = 30 // pods that end
	// look is the pause between two looks at what ends, and so how exact the times are.
	look = 5 * time.Millisecond
)

// kubeletRows measures on the full bed how soon after kubelet took a volume away its lease is gone.
func kubeletRows(ctx context.Context, o options) (results []result, err error) {
	if o.short || !o.rows.MatchString(kubeletRow) && !o.rows.MatchString(apartRow) {
		return nil, nil
	}
	binary := o.provider
	if binary == "" {
		binary = "bin/leasehold"
		if err := build(ctx, binary); err != nil {
			return nil, err
		}
	}
	dir := o.dir + "-full"
	defer func() { err = errors.Join(err, bed.Down(context.WithoutCancel(ctx), dir)) }()
	b, err := bed.Up(ctx, bed.Options{Form: bed.Full, Dir: dir, Log: os.Stdout, Provider: binary})
	if err != nil {
		return nil, err
	}
	vault, err := b.Vault()
	if err != nil {
		return nil, err
	}
	if err := prepare(ctx, b, vault); err != nil {
		return nil, err
	}
	for _, way := range []struct {
		row, how string
		remove   func(context.Context, *bed.Bed, []*podEnd) error
	}{{kubeletRow, "all at once", removeAll}, {apartRow, "one after another", removeApart}} {
		if !o.rows.MatchString(way.row) {
			continue
		}
		r, err := measureEnds(ctx, o, func() (took, untold latencies, err error) { return ends(ctx, b, vault, way.remove) })
		if err != nil {
			return nil, err
		}
		r.Row, r.Title = way.row, fmt.Sprintf("pod end to lease gone, real kubelet, %d pods, %s", ending, way.how)
		write(os.Stdout, []result{r})
		results = append(results, r)
	}
	return results, nil
}

func measureEnds(ctx context.Context, o options, measure func() (took, untold latencies, err error)) (result, error) {
	var took, untold latencies
	var p50s, longest, waits []float64
	for range o.rounds {
		t, u, err := measure()
		if err != nil {
			return result{}, err
		}
		took, untold = append(took, t...), append(untold, u...)
		p50s, longest, waits = append(p50s, milliseconds(t, .5)), append(longest, milliseconds(t, 1)), append(waits, milliseconds(u, .5))
	}
	return result{
		Commit: commit(ctx), Date: time.Now().Format(time.DateOnly), Machine: machine(), Variant: o.variant,
		Sides: []side{
			sideOf("of that, until the API server has kubelet's word that the pod ended", untold),
			sideOf("from the removal of vol_data.json to the failing lookup", took),
		},
		Checks: []check{
			most("p50", "ms", spreadOf(p50s), 300),
			most("max", "ms", spreadOf(longest), 1000),
			{What: "p50 of the wait for kubelet's word", Unit: "ms", spread: spreadOf(waits)},
		},
	}, nil
}

func milliseconds(l latencies, q float64) float64 { return l.quantile(q).Seconds() * 1e3 }

// podEnd is one pod's. Its instants are zero until they come.
type podEnd struct {
	pod corev1.Pod
	// record is kubelet's of the volume, and lease the one that the volume shows.
	record, lease string
	// removed is when kubelet took its record away, told when the API server had a terminal phase, gone when Vault knew the lease no more.
	removed, told, gone time.Time
}

// ends starts pods, removes them, and returns for each how long its lease outlived its volume, and how much of that went by before
// the API server knew that the pod had ended.
func ends(ctx context.Context, b *bed.Bed, vault *api.Client, remove func(context.Context, *bed.Bed, []*podEnd) error) (took, untold latencies, err error) {
	pods, err := runPods(ctx, b)
	if err != nil {
		return nil, nil, err
	}
	all := make([]*podEnd, len(pods.Items))
	for i, p := range pods.Items {
		leases, err := b.VaultLeases(ctx, "database/creds/"+p.Name)
		if err != nil {
			return nil, nil, err
		}
		if len(leases) != 1 {
			return nil, nil, fmt.Errorf("%s has %d leases", p.Name, len(leases))
		}
		record := filepath.Join(b.State().KubeletDir, "pods", string(p.UID), "volumes", "kubernetes.io~csi", "secrets", "vol_data.json")
		if _, err := os.Lstat(record); err != nil {
			return nil, nil, fmt.Errorf("kubelet's record of a volume: %w", err)
		}
		all[i] = &podEnd{pod: p, lease: leases[0], record: record}
	}
	watcher, err := b.Client().CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{ResourceVersion: pods.ResourceVersion})
	if err != nil {
		return nil, nil, fmt.Errorf("watching the pods: %w", err)
	}
	defer watcher.Stop()
	group, watching := errgroup.WithContext(ctx)
	group.Go(func() error { return remove(watching, b, all) })
	group.Go(func() error { return follow(watching, vault, watcher, all) })
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	for _, e := range all {
		took, untold = append(took, e.gone.Sub(e.removed)), append(untold, max(0, e.told.Sub(e.removed)))
	}
	return took, untold, nil
}

// removeAll deletes the pods at once.
func removeAll(ctx context.Context, b *bed.Bed, _ []*podEnd) error {
	return b.Client().CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
}

// removeApart deletes one pod a second: by the time of the next, the one before has mostly ended.
func removeApart(ctx context.Context, b *bed.Bed, all []*podEnd) error {
	for _, e := range all {
		if err := b.Client().CoreV1().Pods(namespace).Delete(ctx, e.pod.Name, metav1.DeleteOptions{}); err != nil {
			return fmt.Errorf("deleting a pod: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return nil
}

// follow looks at the ends until all have come and the pods' names are free. It asks Vault for all leases with one request, because
// thirty would keep a small machine from what is measured.
func follow(ctx context.Context, vault *api.Client, watcher watch.Interface, all []*podEnd) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for present := len(all); present > 0 || slices.ContainsFunc(all, func(e *podEnd) bool { return e.gone.IsZero() }); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event, open := <-watcher.ResultChan():
			p, ok := event.Object.(*corev1.Pod)
			if !open || !ok {
				return fmt.Errorf("the watch of pods ended: %v", event)
			}
			if event.Type == watch.Deleted {
				present--
			}
			terminal := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
			if i := slices.IndexFunc(all, func(e *podEnd) bool { return e.pod.UID == p.UID }); i >= 0 && terminal && all[i].told.IsZero() {
				all[i].told = time.Now()
			}
		case <-tick.C:
			if err := lookAt(ctx, vault, all); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookAt notes which records and which leases are gone.
func lookAt(ctx context.Context, vault *api.Client, all []*podEnd) error {
	ask := false
	for _, e := range all {
		if e.removed.IsZero() {
			if _, err := os.Lstat(e.record); errors.Is(err, fs.ErrNotExist) {
				e.removed = time.Now()
			}
		}
		ask = ask || !e.removed.IsZero() && e.gone.IsZero()
	}
	if !ask {
		return nil
	}
	roles, err := vault.Logical().ListWithContext(ctx, "sys/leases/lookup/database/creds/")
	if err != nil {
		return fmt.Errorf("listing the roles that have leases: %w", err)
	}
	var listed []any
	if roles != nil {
		listed, _ = roles.Data["keys"].([]any)
	}
	for _, e := range all {
		if e.removed.IsZero() || !e.gone.IsZero() || slices.Contains(listed, any(e.pod.Name+"/")) {
			continue
		}
		_, err := vault.Sys().LookupWithContext(ctx, e.lease)
		var refused *api.ResponseError
		switch {
		case errors.As(err, &refused) && strings.Contains(refused.Error(), "invalid lease"):
			e.gone = time.Now()
		case err != nil:
			return fmt.Errorf("looking a lease up: %w", err)
		}
	}
	return nil
}

func endingName(i int) string { return fmt.Sprint("end-", i) }

// prepare makes the namespace, the account, and for each pod a database role and a class of its name: so its lease is known.
func prepare(ctx context.Context, b *bed.Bed, vault *api.Client) error {
	core := b.Client().CoreV1()
	_, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err == nil {
		_, err = core.ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("preparing the cluster: %w", err)
	}
	like, err := vault.Logical().ReadWithContext(ctx, "database/roles/my-app")
	if err != nil {
		return fmt.Errorf("reading a database role: %w", err)
	}
	for i := range ending {
		name := endingName(i)
		if _, err := vault.Logical().WriteWithContext(ctx, "database/roles/"+name, like.Data); err != nil {
			return fmt.Errorf("making a database role: %w", err)
		}
		parameters := map[string]string{"roleName": role, "objects": "- {objectName: user, secretPath: database/creds/" + name + ", secretKey: username}\n"}
		if err := makeClass(ctx, b, name, parameters); err != nil {
			return err
		}
	}
	return nil
}

// runPods returns running pods, each of which mounts the class of its name.
func runPods(ctx context.Context, b *bed.Bed) (*corev1.PodList, error) {
	pods := b.Client().CoreV1().Pods(namespace)
	for i := range ending {
		_, err := pods.Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: endingName(i)},
			Spec: corev1.PodSpec{
				ServiceAccountName: account, AutomountServiceAccountToken: new(bool), TerminationGracePeriodSeconds: new(int64(1)),
				Containers: []corev1.Container{{
					Name: "app", Image: "bed-app:dev", ImagePullPolicy: corev1.PullNever,
					VolumeMounts: []corev1.VolumeMount{{Name: "secrets", MountPath: "/mnt/secrets", ReadOnly: true}},
				}},
				Volumes: []corev1.Volume{{Name: "secrets", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
					Driver: "secrets-store.csi.k8s.io", ReadOnly: new(true), VolumeAttributes: map[string]string{"secretProviderClass": endingName(i)},
				}}}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("making a pod: %w", err)
		}
	}
	for {
		list, err := pods.List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Running"})
		if err != nil {
			return nil, fmt.Errorf("listing the pods: %w", err)
		}
		if len(list.Items) == ending {
			return list, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
