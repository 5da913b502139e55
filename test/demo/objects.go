package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/leasehold-csi/leasehold/test/bed"
)

const (
	namespace   = "demo"
	examplePath = "docs/examples/vault-db-creds.yaml"

	// What the example mounts, and where from. keyPath has the same keys, in the bed's Vault and without a database.
	userFile     = "db_user"
	passwordFile = "db_pass"
	credsPath    = "database/creds/my-app"
	keyPath      = "secret/data/my-app"

	// jobWorks is how long the job's container runs.
	jobWorks = 10 * time.Second
)

var classResource = schema.GroupVersionResource{
	Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasses",
}

// example is the file of the documentation that the story is about.
type example struct {
	account *corev1.ServiceAccount
	class   *unstructured.Unstructured
	// classText is the class as it stands in the file.
	classText string
	pod       *corev1.Pod
	// secret is what the class reads.
	secret string
}

// readExample reads the example; of a bare bed's the class reads a key-value secret.
func readExample(path string, bare bool) (*example, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the example (run this in the top folder of the checkout): %w", err)
	}
	text, secret := string(content), credsPath
	if bare {
		text, secret = strings.ReplaceAll(text, credsPath, keyPath), keyPath
	}
	e, err := parseExample(text)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	e.secret = secret
	return e, nil
}

func parseExample(content string) (*example, error) {
	e := &example{}
	for document := range strings.SplitSeq(content, "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			return nil, err
		}
		var err error
		switch kind.Kind {
		case "ServiceAccount":
			err = yaml.UnmarshalStrict([]byte(document), &e.account)
		case "Pod":
			err = yaml.UnmarshalStrict([]byte(document), &e.pod)
		case "SecretProviderClass":
			e.classText = document
			e.class = &unstructured.Unstructured{}
			err = yaml.Unmarshal([]byte(document), &e.class.Object)
		}
		if err != nil {
			return nil, err
		}
	}
	if e.account == nil || e.class == nil || e.pod == nil {
		return nil, errors.New("a ServiceAccount, a SecretProviderClass or a Pod is missing")
	}
	return e, nil
}

// volume is the name of the example's one volume.
func (e *example) volume() string { return e.pod.Spec.Volumes[0].Name }

// appPod is the example's pod, whose container logs in to the bed's database every second.
func (e *example) appPod(postgres bed.PostgresState) *corev1.Pod {
	pod := e.pod.DeepCopy()
	container := &pod.Spec.Containers[0]
	folder := container.VolumeMounts[0].MountPath
	container.Image, container.ImagePullPolicy, container.Command = "bed-app:dev", corev1.PullNever, nil
	container.Args = []string{
		"run", "--probe-every=1s",
		fmt.Sprintf("--dsn=postgres://%s:%d/%s?sslmode=disable", postgres.Host, postgres.Port, postgres.Database),
		"--user-file=" + folder + "/" + userFile, "--pass-file=" + folder + "/" + passwordFile,
	}
	return pod
}

// appJob runs the same pod for a while. The light form runs no container and reads the time from the annotation.
func (e *example) appJob(postgres bed.PostgresState) *batchv1.Job {
	pod := e.appPod(postgres)
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	container := &pod.Spec.Containers[0]
	container.Args = append(container.Args, "--for="+jobWorks.String())
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "my-job"},
		Spec: batchv1.JobSpec{
			BackoffLimit: new(int32),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"lightnode/run-for": jobWorks.String()}},
				Spec:       pod.Spec,
			},
		},
	}
}
