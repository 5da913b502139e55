package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// rules say of each program that the documentation calls how its arguments are checked.
var rules = map[string]func(t *testing.T, args []string) error{
	"leasehold": leaseholdRule, "kubectl": kubectlRule, "helm": helmRule, "vault": vaultRule, "make": makeRule, "go": goRule,
	"bench": flagsRule("test/bench"),
}

// unchecked are programs that are not run: what keeps a test from it.
var unchecked = map[string]string{
	"awk": "a part of pipelines", "date": "a part of pipelines", "jq": "a part of pipelines", "tail": "a part of pipelines",
	"mkdir": "says all that there is to say", "rm": "says all that there is to say", "tar": "says all that there is to say",
	"git":   "the project's tags are not the test's",
	"crane": "no registry", "oras": "no registry", "skopeo": "no registry", "trivy": "cannot be had as a Go module or Debian package",
	"ctr": "needs containerd and root; the full test bed imports images by its library", "docker": "no Docker", "kind": "no Docker",
	"bao": "OpenBao's server cannot be had as a Go module or Debian package", "oc": "no OpenShift",
	"curl": "the provider's tests read the same address",
}

// notCommands are how indented blocks begin that hold something else.
var notCommands = []string{
	"cmd -> provider,", "kubelet ──> CSI driver", "cmd/leasehold        flags", // drawings
	"POD             VOLUME", "logging in at https://", // output
	"- {objectName: ", "- objectName: ", `path "pki/revoke"`, // parts of classes and of policies
}

var (
	fence  = regexp.MustCompile("(?ms)^ *```([a-z]*)\n.*?^ *```$")
	inline = regexp.MustCompile("`((?:[A-Z_]+=\\S+ )?(?:bin/)?(?:" + strings.Join(known(), "|") + ") [^`]*)`")
	block  = regexp.MustCompile(`(?m)(?:\A|\n\n)((?: {4,}\S.*(?:\n|\z))+)`)
)

// known are the programs that a rule or a reason is here for.
func known() []string {
	return append(slices.Collect(maps.Keys(rules)), slices.Collect(maps.Keys(unchecked))...)
}

// commandsOf are the shell commands in a text of Markdown: its indented blocks, and what in its lines begins with a program that is known.
func commandsOf(t *testing.T, name, text string) []string {
	t.Helper()
	for _, fenced := range fence.FindAllStringSubmatch(text, -1) {
		if !slices.Contains([]string{"yaml", "go"}, fenced[1]) {
			t.Errorf("%s: a fenced block of %q: commands are indented", name, fenced[1])
		}
	}
	text = fence.ReplaceAllString(text, "")
	var commands []string
	for _, found := range block.FindAllStringSubmatch(text, -1) {
		if first := strings.TrimSpace(found[1]); !slices.ContainsFunc(notCommands, func(begin string) bool { return strings.HasPrefix(first, begin) }) {
			commands = append(commands, found[1])
		}
	}
	for _, found := range inline.FindAllStringSubmatch(text, -1) {
		commands = append(commands, found[1])
	}
	return commands
}

// TestCommandsOfTheDocumentation has a shell read every command that a user is told to type, with stand-ins for the programs, and checks what each
// program was called with. A program without a rule fails.
func TestCommandsOfTheDocumentation(t *testing.T) {
	pages := []string{"README.md", "CONTRIBUTING.md", "manifests/README.md", "docs/examples/README.md"}
	more, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range more {
		pages = append(pages, "docs/"+filepath.Base(page))
	}
	programs := standIns(t)
	seen := map[string]bool{}
	for _, page := range pages {
		for _, script := range commandsOf(t, page, read(t, page)) {
			for _, call := range calls(t, programs, page, script) {
				program, args := filepath.Base(call[0]), call[1:]
				seen[program] = true
				if rule := rules[program]; rule != nil {
					if err := rule(t, args); err != nil {
						t.Errorf("%s: %s %q: %v", page, program, args, err)
					}
				}
			}
		}
	}
	for _, program := range known() {
		if !seen[program] {
			t.Errorf("no page calls %s any more", program)
		}
	}
}

// standIns is a folder of programs that tell what they were called with, and print a name.
func standIns(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	const script = "#!/bin/bash\nprintf '%s\\0' \"$0\" \"$@\" $'\\1' >>\"$CALLS\"\ntrap '' PIPE\necho name 2>/dev/null\nexit 0\n"
	for _, program := range known() {
		if err := os.WriteFile(filepath.Join(folder, program), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// calls runs a script with stand-ins for programs, and returns what they were called with.
func calls(t *testing.T, programs, page, script string) [][]string {
	t.Helper()
	folder := t.TempDir()
	if err := os.Symlink(programs, filepath.Join(folder, "bin")); err != nil { // as in bin/demo
		t.Fatal(err)
	}
	record := filepath.Join(folder, "calls")
	cmd := exec.CommandContext(t.Context(), "/bin/bash", "-eu", "-o", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = folder, []string{"PATH=" + programs, "CALLS=" + record}
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: a shell says %v of\n%s%s", page, err, script, output)
	}
	text, err := os.ReadFile(record)
	if err != nil {
		t.Errorf("%s: nothing is called by\n%s", page, script)
	}
	var all [][]string
	for call := range bytes.SplitSeq(bytes.TrimSuffix(text, []byte("\x01\x00")), []byte("\x01\x00")) {
		all = append(all, strings.Split(strings.TrimSuffix(string(call), "\x00"), "\x00"))
	}
	return all
}

// leaseholdRule has the program itself read its arguments, at a place where it finds nothing to work with.
func leaseholdRule(t *testing.T, args []string) error {
	if len(args) < 2 { // a command that a page only names
		args = append(args, "-h")
	}
	cmd := command(t, args...)
	cmd.Dir, cmd.Stdin = t.TempDir(), strings.NewReader(read(t, "docs/examples/vault-db-creds.yaml"))
	if err := os.WriteFile(filepath.Join(cmd.Dir, "classes.yaml"), []byte(read(t, "docs/examples/pgpass.yaml")), 0o600); err != nil {
		return err
	}
	output, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() != 2 {
		return nil // it was understood
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
}

// kubectlRule knows the verbs that the documentation uses, and looks at what they name of this project.
func kubectlRule(t *testing.T, args []string) error {
	if i := slices.Index(args, "--"); i >= 0 {
		if args[i+1] != "/leasehold" {
			return errors.New("the image has no program but /leasehold")
		}
		if !slices.Contains(args[:i], "exec") {
			return errors.New("only exec takes a command")
		}
		return leaseholdRule(t, args[i+2:])
	}
	verbs := []string{"apply", "delete", "describe", "exec", "get", "label", "logs", "patch", "port-forward", "proxy", "rollout", "wait"}
	if !slices.ContainsFunc(args, func(arg string) bool { return slices.Contains(verbs, arg) }) {
		return fmt.Errorf("none of the verbs %v", verbs)
	}
	for i, arg := range args[:len(args)-1] {
		switch value := args[i+1]; arg {
		case "-k":
			// What is not rendered in test/tools/manifests is given to no API server.
			if rendered := "test/tools/manifests/testdata/" + filepath.Base(value) + ".yaml"; read(t, value+"/kustomization.yaml") == "" || read(t, rendered) == "" {
				return errors.New("nothing is rendered of it")
			}
		case "-p":
			if !json.Valid([]byte(value)) {
				return errors.New("the patch is not JSON")
			}
		}
	}
	return nil
}

// helmRule compares what is set with the values of the chart; of others' charts it knows nothing.
func helmRule(t *testing.T, args []string) error {
	if !slices.Contains([]string{"install", "uninstall", "upgrade"}, args[0]) {
		return errors.New("an unknown verb")
	}
	if !slices.Contains(args, "manifests/chart") {
		return nil
	}
	var values map[string]any
	if err := yaml.Unmarshal([]byte(read(t, "manifests/chart/values.yaml")), &values); err != nil {
		return err
	}
	for i, arg := range args[:len(args)-1] {
		if arg != "--set" {
			continue
		}
		name, _, _ := strings.Cut(args[i+1], "=")
		var value any = values
		for key := range strings.SplitSeq(name, ".") {
			group, _ := value.(map[string]any)
			var known bool
			if value, known = group[key]; !known {
				return fmt.Errorf("the chart has no value %s", name)
			}
		}
	}
	return nil
}

// runWithVault are commands for Vault that the end-to-end tests run as they stand: those of the examples, and those below.
var runWithVault = []string{"vault list sys/leases/lookup/", "vault lease lookup ", "vault lease revoke "} // docs/migration.md

// doneByAPI are commands that the test bed and the end-to-end tests have no need of: they do the same by Vault's API.
var doneByAPI = []string{
	"vault auth enable ", "vault auth list", "vault secrets enable ", "vault list auth/token/accessors",
	"vault token lookup -accessor ", "vault token revoke -accessor ", "vault write -wrap-ttl=10m -f auth/approle/role/NAME/secret-id",
}

func vaultRule(t *testing.T, args []string) error {
	call := "vault " + strings.Join(args, " ")
	for _, begin := range slices.Concat(runWithVault, doneByAPI) {
		if strings.HasPrefix(call, begin) {
			return nil
		}
	}
	examples, err := filepath.Glob("../../docs/examples/*.yaml")
	if err != nil {
		return err
	}
	for _, example := range examples {
		// Without the marks of the comment, line ends within a command, and the order of what is set.
		text := strings.NewReplacer("#     ", "", "\\\n", "").Replace(read(t, "docs/examples/"+filepath.Base(example)))
		for line := range strings.Lines(text) {
			line, _, _ = strings.Cut(line, " - <<")
			if same(strings.Fields(line), strings.Fields(call)) {
				return nil
			}
		}
	}
	return errors.New("no example has it, so that no test runs it")
}

// same compares two commands without the order of their words, and without the "-" for the standard input.
func same(a, b []string) bool {
	sorted := func(words []string) []string {
		return slices.DeleteFunc(slices.Sorted(slices.Values(words)), func(word string) bool { return word == "-" })
	}
	return slices.Equal(sorted(a), sorted(b))
}

// flagsOfMake are variables that hold flags, with the program that is given them.
var flagsOfMake = map[string]string{"BENCH": "test/bench", "DEMO": "test/demo"}

func makeRule(t *testing.T, args []string) error {
	makefile := read(t, "Makefile")
	for _, arg := range args {
		name, value, set := strings.Cut(arg, "=")
		pattern := "(?m)^" + name + ":"
		if set {
			pattern = "(?m)^(export )?" + name + ` \?=`
		}
		if source := flagsOfMake[name]; source != "" {
			if err := flagsRule(source)(t, strings.Fields(value)); err != nil {
				return err
			}
		}
		if !regexp.MustCompile(pattern).MatchString(makefile) {
			return fmt.Errorf("the Makefile has no %s", name)
		}
	}
	return nil
}

// goRule looks for the packages of this project that are named.
func goRule(_ *testing.T, args []string) error {
	if !slices.Contains([]string{"build", "get", "list", "mod", "run", "test", "tool", "version"}, args[0]) {
		return errors.New("an unknown verb")
	}
	module := "../.."
	if len(args) > 2 && args[1] == "-C" {
		module = filepath.Join(module, args[2])
	}
	for _, arg := range args {
		if strings.HasPrefix(arg, "./") {
			if _, err := os.Stat(filepath.Join(module, strings.TrimSuffix(arg, "..."))); err != nil {
				return err
			}
		}
	}
	return nil
}

// flagsRule compares with the flags that a program's source defines.
func flagsRule(source string) func(*testing.T, []string) error {
	return func(t *testing.T, args []string) error {
		defined := names(`flags?\.[A-Z]\w*\((?:&[\w.]+, )?"([a-z-]+)"`, read(t, source+"/main.go"))
		for _, arg := range args {
			name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			if strings.HasPrefix(arg, "-") && name != "h" && !slices.Contains(defined, name) {
				return fmt.Errorf("%s defines the flags %v", source, defined)
			}
		}
		return nil
	}
}
