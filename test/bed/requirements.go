package bed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// MissingError says that this machine cannot run a form of the bed.
type MissingError struct {
	Form Form
	// Reason is one sentence.
	Reason string
	// Packages are the Debian packages that would help; none when no package does.
	Packages []string
}

func (e *MissingError) Error() string {
	text := fmt.Sprintf("the %s test bed cannot run here: %s", e.Form, e.Reason)
	if len(e.Packages) > 0 {
		text += "\n    apt-get install -y " + strings.Join(e.Packages, " ")
	}
	return text
}

// requirement is a file, and the Debian package that brings it, if one does. The bed looks in $PATH for a bare name, and else for a match of
// the pattern.
type requirement struct{ file, pkg string }

var lightRequirements = []requirement{
	{"/usr/lib/postgresql/*/bin/postgres", "postgresql"},
	{"/usr/lib/postgresql/*/bin/psql", "postgresql-client"},
}

var fullRequirements = append(slices.Clone(lightRequirements),
	requirement{"containerd", "containerd"},
	requirement{"runc", "runc"},
	requirement{"/usr/lib/cni/bridge", "containernetworking-plugins"},
	requirement{"ip", "iproute2"},
	requirement{"nsenter", "util-linux"},
	requirement{"/usr/bin/busybox", "busybox-static"},
)

var kindRequirements = append(slices.Clone(lightRequirements),
	requirement{"docker", "docker.io"},
	requirement{"kind", ""}, // no package of Debian's
	requirement{"/usr/bin/busybox", "busybox-static"},
)

// CanRun returns nil when this form can run on this machine, and else a [MissingError].
func CanRun(form Form) error {
	switch form {
	case Light:
		return CanRunLight()
	case Full:
		return CanRunFull()
	case Kind:
		return missing(Kind, kindRequirements)
	}
	return fmt.Errorf("unknown form of test bed %q", form)
}

// CanRunLight returns nil when the light form can run on this machine, and else a [MissingError].
func CanRunLight() error {
	return missing(Light, lightRequirements)
}

// CanRunFull returns nil when the full form can run on this machine, and else a [MissingError].
func CanRunFull() error {
	if os.Geteuid() != 0 {
		return &MissingError{Form: Full, Reason: "it needs root, for containers and mounts"}
	}
	if err := exec.Command("unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/run").Run(); err != nil {
		return &MissingError{Form: Full, Reason: "this root may not make mount and process namespaces (CAP_SYS_ADMIN)"}
	}
	return missing(Full, fullRequirements)
}

func missing(form Form, requirements []requirement) error {
	var files, packages []string
	for _, r := range requirements {
		if r.present() {
			continue
		}
		files = append(files, filepath.Base(r.file))
		if r.pkg != "" && !slices.Contains(packages, r.pkg) {
			packages = append(packages, r.pkg)
		}
	}
	if len(files) == 0 {
		return nil
	}
	return &MissingError{Form: form, Reason: "missing: " + strings.Join(files, ", ") + ".", Packages: packages}
}

func (r requirement) present() bool {
	_, err := r.find()
	return err == nil
}

// find returns where the file is; of several matches the last, which is the newest version.
func (r requirement) find() (string, error) {
	if !strings.Contains(r.file, "/") {
		return lookPath(r.file)
	}
	matches, err := filepath.Glob(r.file)
	if err != nil || len(matches) == 0 {
		return "", errors.New(r.file + " is not there")
	}
	return matches[len(matches)-1], nil
}

// lookPath finds a program also where an ordinary user's PATH does not look.
func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}
