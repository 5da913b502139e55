package main

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/leasehold-csi/leasehold/test/bed"
)

func TestChooseFrom(t *testing.T) {
	noRoot := &bed.MissingError{Form: bed.Full, Reason: "it needs root, for containers and mounts"}
	noRunc := &bed.MissingError{Form: bed.Full, Reason: "missing: runc.", Packages: []string{"runc"}}
	noPostgres := &bed.MissingError{Form: bed.Light, Reason: "missing: postgres.", Packages: []string{"postgresql"}}
	fault := errors.New("the disk is full")
	for _, c := range []struct {
		name        string
		full, light error
		form        bed.Form
		why         string
		install     string
		bare        bool
		err         error
	}{
		{name: "both can run", form: bed.Full, why: "root"},
		{name: "no root", full: noRoot, form: bed.Light, why: "it needs root"},
		{name: "a package is missing", full: noRunc, form: bed.Light, why: "missing: runc.", install: "apt-get install -y runc"},
		{name: "no PostgreSQL: the full form's packages hold the light one's", full: noRunc, light: noPostgres, form: bed.Light,
			why: "missing: runc.", install: "apt-get install -y runc", bare: true},
		{name: "no PostgreSQL, and no package makes a root", full: noRoot, light: noPostgres, form: bed.Light,
			why: "it needs root", install: "apt-get install -y postgresql", bare: true},
		{name: "nobody can tell", full: noRoot, light: fault, form: bed.Light, why: "it needs root", err: fault},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := chooseFrom(c.full, c.light)
			if got.form != c.form || !strings.Contains(got.why, c.why) || got.install != c.install || got.bare != c.bare || !errors.Is(err, c.err) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestExampleOfTheDocumentation(t *testing.T) {
	e, err := readExample(filepath.Join("..", "..", examplePath), false)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(e.classText, "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n") {
		t.Errorf("the class as printed: %s", e.classText)
	}
	postgres := bed.PostgresState{Host: "127.0.0.1", Port: 5432, Database: "app"}
	pod := e.appPod(postgres)
	want := []string{
		"run", "--probe-every=1s", "--dsn=postgres://127.0.0.1:5432/app?sslmode=disable",
		"--user-file=/mnt/secrets/db_user", "--pass-file=/mnt/secrets/db_pass",
	}
	if c := pod.Spec.Containers[0]; c.Image != "bed-app:dev" || c.Command != nil || !slices.Equal(c.Args, want) {
		t.Errorf("the app's container: %+v", c)
	}
	if pod.Spec.Volumes[0].CSI.VolumeAttributes["secretProviderClass"] != e.class.GetName() {
		t.Error("the pod does not mount the class")
	}
	job := e.appJob(postgres).Spec.Template
	if args := job.Spec.Containers[0].Args; args[len(args)-1] != "--for=10s" || job.Annotations["lightnode/run-for"] != "10s" {
		t.Errorf("the job does not end by itself: %v, %v", args, job.Annotations)
	}
	if len(pod.Spec.Containers[0].Args) != len(want) || e.pod.Spec.Containers[0].Image == "bed-app:dev" {
		t.Error("making one object changes another")
	}
}

func TestExampleWithoutADatabase(t *testing.T) {
	e, err := readExample(filepath.Join("..", "..", examplePath), true)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(e.classText, "database/") || strings.Count(e.classText, `secretPath: "`+e.secret+`"`) != 2 {
		t.Errorf("the class as printed: %s", e.classText)
	}
}

func TestParseExampleWantsAllThree(t *testing.T) {
	for _, content := range []string{"", "kind: Pod", "kind: [", "kind: Pod\nspce: {}"} {
		if _, err := parseExample(content); err == nil {
			t.Errorf("%q: no error", content)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for output, want := range map[string]string{
		"etcd Version: 3.4.23\nGit SHA: Not provided\n":          "3.4.23",
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": "15.18",
		"v0.1.0-3-gabcdef\n": "v0.1.0-3-gabcdef",
		"":                   "",
	} {
		if got := parseVersion(output); got != want {
			t.Errorf("%q: got %q", output, got)
		}
	}
}
