package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-csi/leasehold/test/bed"
)

const (
	ending = 30 // pods that end at once
	// look is the pause between two looks at what ends, and so how exact the times are.
	look = 5 * time.Millisecond
)

// kubeletRows measures on the full bed how soon after kubelet took a volume away its lease is gone.
func kubeletRows(ctx context.Context, o options) (results []result, err error) {
	if o.short || !o.rows.MatchString(kubeletRow) {
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
	defer func() { err = errors.Join(err, takeDown(context.WithoutCancel(ctx), dir)) }()
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
	var rounds []round
	var p50s, longest []float64
	for range o.rounds {
		took, err := ends(ctx, b, vault)
		if err != nil {
			return nil, err
		}
		rounds = append(rounds, round{ours: took})
		p50s, longest = append(p50s, took.quantile(.5).Seconds()*1e3), append(longest, took.quantile(1).Seconds()*1e3)
	}
	r := result{
		Row: kubeletRow, Title: fmt.Sprintf("pod end to lease gone, real kubelet, %d pods at once", ending),
		Commit: commit(ctx), Date: time.Now().Format(time.DateOnly), Machine: machine(), Variant: o.variant,
		Sides: []side{sideOf("from the removal of vol_data.json to the failing lookup", pooled(rounds, oursOf))},
		Checks: []check{
			most("p50", "ms", spreadOf(p50s), 300),
			most("max", "ms", spreadOf(longest), 1000),
		},
	}
	write(os.Stdout, []result{r})
	return []result{r}, nil
}

// ends starts pods, deletes them at once, and returns for each how long its lease outlived its volume.
func ends(ctx context.Context, b *bed.Bed, vault *api.Client) (took latencies, err error) {
	pods, err := runPods(ctx, b)
	if err != nil {
		return nil, err
	}
	group, watching := errgroup.WithContext(ctx)
	var mu sync.Mutex
	for _, p := range pods {
		leases, err := b.VaultLeases(ctx, "database/creds/"+p.Name)
		if err != nil {
			return nil, err
		}
		if len(leases) != 1 {
			return nil, fmt.Errorf("%s has %d leases", p.Name, len(leases))
		}
		record := filepath.Join(b.State().KubeletDir, "pods", string(p.UID), "volumes", "kubernetes.io~csi", "secrets", "vol_data.json")
		if _, err := os.Lstat(record); err != nil {
			return nil, fmt.Errorf("kubelet's record of a volume: %w", err)
		}
		group.Go(func() error {
			one, err := outlived(watching, vault, record, leases[0])
			mu.Lock()
			defer mu.Unlock()
			took = append(took, one)
			return err
		})
	}
	err = b.Client().CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if err = errors.Join(err, group.Wait()); err != nil {
		return nil, err
	}
	for { // their names are used again
		list, err := b.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) == 0 {
			return took, err
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
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
func runPods(ctx context.Context, b *bed.Bed) ([]corev1.Pod, error) {
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
			return list.Items, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// outlived waits until kubelet's record of a volume is removed and returns how long after that the lease could not be found.
func outlived(ctx context.Context, vault *api.Client, record, lease string) (time.Duration, error) {
	for {
		_, err := os.Lstat(record)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err := pause(ctx); err != nil {
			return 0, err
		}
	}
	removed := time.Now()
	for {
		_, err := vault.Sys().LookupWithContext(ctx, lease)
		var refused *api.ResponseError
		if errors.As(err, &refused) && strings.Contains(refused.Error(), "invalid lease") {
			return time.Since(removed), nil
		}
		if err != nil {
			return 0, fmt.Errorf("looking a lease up: %w", err)
		}
		if err := pause(ctx); err != nil {
			return 0, err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(look):
		return nil
	}
}
