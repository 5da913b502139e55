package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"

	"github.com/leasehold-csi/leasehold/test/bed"
)

// republishes is how many the story waits for.
const republishes = 2

// story is what is told, chapter by chapter.
type story struct {
	*printer
	choice
	example *example
	bed     *bed.Bed // nil before it is up

	app     *app
	results []result

	begun     time.Time // of the command that all this is
	times     times
	timesFile string // empty for nowhere
}

// result is one line of the summary.
type result struct {
	name          string
	running       time.Duration
	logins, reads int
	ends          map[string]time.Duration
}

func (s *story) tell(ctx context.Context) error {
	start := time.Now()
	s.title("Leasehold: a Vault provider for the Secrets Store CSI driver that gives every lease back")
	what, where := "An app mounts database credentials from Vault, logs in with them and ends. Seconds later its lease, its Vault "+
		"token and its database user are gone.", "in Vault, in PostgreSQL,"
	if s.bare {
		what, where = "An app mounts a secret from Vault and ends. Seconds later the Vault token that was made for it is gone.", "in Vault,"
	}
	s.say(what + " Everything below is real and looked up where the truth is: " + where + " in Vault's audit log and on the node's disk.")
	chapters := []struct {
		title string
		tell  func(context.Context) error
	}{
		{"The parts", s.parts},
		{"What the app asks for", s.class},
		{"The app starts", s.starts},
		{"Republish: the files are asked for again, and nothing new is made", s.republished},
		{"The pod is deleted", s.deleted},
		{"A Job completes, and its objects stay", s.completes},
	}
	for i, chapter := range chapters {
		s.chapter(i+1, chapter.title)
		if err := chapter.tell(ctx); err != nil {
			return err
		}
	}
	s.chapter(len(chapters)+1, "In short")
	s.summary(time.Since(start))
	return nil
}

func (s *story) parts(ctx context.Context) error {
	s.say(fmt.Sprintf("The %s form of the test bed, because %s", s.form, s.why))
	if s.bare {
		s.say("There is no PostgreSQL either, so the secret is a key-value one. With it the story is of credentials of a database, which Vault " +
			"leases: they are renewed, and revoked at the pod's end.")
	}
	if s.install != "" {
		s.say("To have more:")
		s.line("    " + s.install)
		s.gap()
	}
	s.say("What has to be built is built once, which takes about a quarter of an hour on two processors.")
	if err := s.raise(ctx); err != nil {
		return err
	}
	rows, err := s.versions(ctx)
	if err != nil {
		return err
	}
	s.gap()
	s.table(nil, rows)
	return nil
}

func (s *story) class(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	from := "From " + examplePath + ", as applied. Both files come from one read of " + s.example.secret
	if s.bare {
		s.say(from + ", which stands there for " + credsPath + ":")
	} else {
		s.say(from + ", for which Vault makes a database user that lives for an hour, whether or not anybody needs it that long:")
	}
	s.block(s.example.classText)
	return nil
}

// prepare makes a namespace with the example's service account and class.
func (s *story) prepare(ctx context.Context) error {
	core := s.bed.Client().CoreV1()
	_, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating the namespace: %w", err)
	}
	if _, err := core.ServiceAccounts(namespace).Create(ctx, s.example.account, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the service account: %w", err)
	}
	client, err := dynamic.NewForConfig(s.bed.RESTConfig())
	if err != nil {
		return fmt.Errorf("creating the class: %w", err)
	}
	if _, err := client.Resource(classResource).Namespace(namespace).Create(ctx, s.example.class, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the class: %w", err)
	}
	// Without it kubelet does not start pods; a pod that waits for it would look slow.
	return await(ctx, s.printer, "the namespace to be ready", func(ctx context.Context) error {
		_, err := core.ConfigMaps(namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
}

func (s *story) starts(ctx context.Context) error {
	a, err := s.newApp()
	if err != nil {
		return err
	}
	a.pod, err = s.bed.Client().CoreV1().Pods(namespace).Create(ctx, s.example.appPod(s.bed.State().Postgres), metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating the pod: %w", err)
	}
	if err := a.start(ctx); err != nil {
		return err
	}
	s.app = a
	if err := s.showFiles(); err != nil {
		return err
	}
	if err := s.showTimes(); err != nil {
		return err
	}
	if err := s.showHoldings(ctx, a); err != nil {
		return err
	}
	s.gap()
	s.say("What the provider of this node says it holds:")
	return s.showLeases(ctx)
}

func (s *story) showFiles() error {
	for _, name := range []string{userFile, passwordFile} {
		info, err := os.Stat(s.app.path(name))
		if err != nil {
			return fmt.Errorf("looking at a mounted file: %w", err)
		}
		shown := s.app.files[name]
		if name != userFile {
			shown = "••••••••"
		}
		s.done("file "+name, fmt.Sprintf("%d bytes  mode %04o  %s", info.Size(), info.Mode(), shown))
	}
	return nil
}

// showHoldings checks that there is just what one app needs, and that the app can use it.
func (s *story) showHoldings(ctx context.Context, a *app) error {
	held, err := s.holdings(ctx)
	if err != nil {
		return err
	}
	if s.bare {
		if held.tokens != 1 || held.leases != 0 {
			return fmt.Errorf("there should be one token and no lease; there are %s, %s", count(held.tokens, "token"), count(held.leases, "lease"))
		}
		s.done("Vault holds", "1 token")
		return nil
	}
	logIn, err := a.logIn(ctx)
	if err != nil {
		return err
	}
	s.done("logs in to PostgreSQL", logIn)
	if err := held.onlyOf(a.files[userFile]); err != nil {
		return err
	}
	s.done("Vault holds", fmt.Sprintf("%s, %s of %s", count(held.tokens, "token"), count(held.leases, "lease"), credsPath))
	s.done("PostgreSQL holds", "role "+held.roles[0])
	return nil
}

func (s *story) showLeases(ctx context.Context) error {
	line := s.leasesCommand()
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("running leasehold leases: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	s.block("$ leasehold leases\n" + string(output))
	return nil
}

func (s *story) republished(ctx context.Context) error {
	s.say("Rotation is on, so kubelet asks for mounted volumes again and again: here every 10 to 15 seconds, elsewhere every " +
		"minute or so. A provider that forgets what it mounted would read anew each time, and have Vault make another database user.")
	before, err := s.mountsAnswered(ctx)
	if err != nil {
		return err
	}
	for i := range republishes {
		start := time.Now()
		which := fmt.Sprintf("republish %d of %d", i+1, republishes)
		err := await(ctx, s.printer, which, func(ctx context.Context) error {
			answered, err := s.mountsAnswered(ctx)
			if err == nil && answered <= before+i {
				err = fmt.Errorf("the provider has answered %s of the driver", count(answered, "Mount call"))
			}
			return err
		})
		if err != nil {
			return err
		}
		if err := s.app.sameFiles(); err != nil {
			return err
		}
		s.done(which, "after "+seconds(time.Since(start))+", same bytes")
	}
	made, err := s.app.made()
	if err != nil {
		return err
	}
	if made != (requests{logins: 1, reads: 1}) {
		return fmt.Errorf("vault's audit log has %s and %s since the pod was made, and should have one of each",
			count(made.logins, "login"), count(made.reads, "read"))
	}
	s.done("Vault's audit log", fmt.Sprintf("still %s and %s of the secret", count(made.logins, "login"), count(made.reads, "read")))
	return s.showHoldings(ctx, s.app)
}

func (s *story) deleted(ctx context.Context) error {
	s.say("Nothing is taken away while a container could still use it. When kubelet has unmounted the volume, the provider " +
		"revokes the token, and Vault everything that was made with it. Seconds count from the unmount, and each line is " +
		"looked up every 0.05 s:")
	err := s.bed.Client().CoreV1().Pods(namespace).Delete(ctx, s.app.pod.Name, metav1.DeleteOptions{})
	if err != nil {
		return fmt.Errorf("deleting the pod: %w", err)
	}
	return s.watchEnd(ctx, "pod "+s.app.pod.Name, s.app)
}

func (s *story) completes(ctx context.Context) error {
	s.say(fmt.Sprintf("The same pod as a Job, which works for %.0f seconds. Nobody deletes anything: the end of its container "+
		"is enough.", jobWorks.Seconds()))
	a, err := s.newApp()
	if err != nil {
		return err
	}
	jobs := s.bed.Client().BatchV1().Jobs(namespace)
	job, err := jobs.Create(ctx, s.example.appJob(s.bed.State().Postgres), metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating the job: %w", err)
	}
	if a.pod, err = s.podOf(ctx, job.Name); err != nil {
		return err
	}
	if err := a.start(ctx); err != nil {
		return err
	}
	if err := s.showHoldings(ctx, a); err != nil {
		return err
	}
	s.gap()
	if err := s.watchEnd(ctx, "job "+job.Name, a); err != nil {
		return err
	}
	err = await(ctx, s.printer, "the Job to be complete", func(ctx context.Context) error {
		job, err := jobs.Get(ctx, job.Name, metav1.GetOptions{})
		if err == nil && job.Status.Succeeded != 1 {
			err = fmt.Errorf("%s succeeded, %d failed", count(int(job.Status.Succeeded), "pod"), job.Status.Failed)
		}
		return err
	})
	if err != nil {
		return err
	}
	kept, err := s.bed.Client().CoreV1().Pods(namespace).Get(ctx, a.pod.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("looking for the completed pod: %w", err)
	}
	s.done("the objects stay", fmt.Sprintf("job/%s is complete, pod/%s %s", job.Name, kept.Name, kept.Status.Phase))
	if s.form == bed.Full {
		s.done("every login worked", "the app exited with 0, which it does only when none failed")
	}
	return nil
}

// podOf waits for the Job's one pod.
func (s *story) podOf(ctx context.Context, job string) (*corev1.Pod, error) {
	var pod *corev1.Pod
	err := await(ctx, s.printer, "the Job's pod", func(ctx context.Context) error {
		list, err := s.bed.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "job-name=" + job})
		if err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return errors.New("there is none")
		}
		pod = &list.Items[0]
		return nil
	})
	return pod, err
}

// watchEnd shows how everything of an app that is about to end goes, and that it goes in the right order.
func (s *story) watchEnd(ctx context.Context, name string, a *app) error {
	made, err := a.made()
	if err != nil {
		return err
	}
	ends, err := watchEnds(ctx, s.printer, a.things())
	if err != nil {
		return err
	}
	volume, credentials := ends[1], ends[2:]
	if err := notBefore(volume, credentials); err != nil {
		return err
	}
	r := result{name: name, running: a.running, logins: made.logins, reads: made.reads, ends: map[string]time.Duration{}}
	slices.SortStableFunc(ends, func(x, y end) int { return x.gone.Compare(y.gone) })
	for _, e := range ends {
		r.ends[e.what] = e.gone.Sub(volume.gone)
		s.at(r.ends[e.what], e.what, e.source)
	}
	s.gap()
	s.results = append(s.results, r)
	if err := await(ctx, s.printer, "the provider to forget the volume", s.providerHoldsNothing); err != nil {
		return err
	}
	return s.showLeases(ctx)
}

func (s *story) summary(total time.Duration) {
	heading := []string{"", "running after", "logins", "reads", "unmount to " + tokenGone}
	if !s.bare {
		heading = append(heading, leaseGone, roleGone)
	}
	var rows [][]string
	for _, r := range s.results {
		row := []string{r.name, seconds(r.running), fmt.Sprint(r.logins), fmt.Sprint(r.reads), exactSeconds(r.ends[tokenGone])}
		if !s.bare {
			row = append(row, exactSeconds(r.ends[leaseGone]), exactSeconds(r.ends[roleGone]))
		}
		rows = append(rows, row)
	}
	s.table(heading, rows)
	checked := fmt.Sprintf("Everything above was checked, in %.0f s. Vault holds no token", total.Seconds())
	if s.bare {
		s.say(checked + " of these pods.")
	} else {
		s.say(checked + " and no lease of these pods, and PostgreSQL no user. Without Leasehold each of these users would have lived on for " +
			"the rest of its hour, and each republish would have made another.")
	}
	s.say("What to try next:")
	s.table(nil, [][]string{
		{"make test", "every package by itself, with a fake Vault that behaves as the real one"},
		{"make e2e-fast", "the scenarios on the light test bed: restarts, force deletes, bad input"},
		{"make e2e", "the same on the full one"},
		{"make demo DEMO=--keep", "this story again, and the test bed stays up to look around"},
	})
	s.say("To read on: README.md, docs/architecture.md, docs/testing.md.")
}
