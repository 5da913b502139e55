package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
)

// revoke has the provider of this node give back what one pod holds, whether or not it runs.
func revoke(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("revoke", flag.ContinueOnError)
	flags.SetOutput(stderr)
	pod := flags.String("pod", "", "`namespace/name` of the pod")
	yes := flags.Bool("yes", false, "do not ask")
	timeout := flags.Duration("timeout", time.Minute, "how `long` to wait for Vault")
	stateDir := flags.String("state-dir", defaultStateDir, "state `folder` of the provider to ask")
	if err := parse(flags, args); err != nil {
		return err
	}
	namespace, name, ok := strings.Cut(*pod, "/")
	if !ok || namespace == "" || name == "" {
		return fmt.Errorf("%w: --pod must be namespace/name", errUsage)
	}
	report, err := fetch(ctx, *stateDir)
	if err != nil {
		return err
	}
	held := admin.Selection{Namespace: namespace, Pod: name}.Of(report)
	if len(held.Grants) == 0 {
		return fmt.Errorf("nothing is held for pod %s on node %s", *pod, report.Node)
	}
	if !*yes {
		if err := admin.WriteTable(stderr, held, false); err != nil {
			return err
		}
		_, _ = fmt.Fprint(stderr, "The pod's containers lose these credentials now, and see others after its next republish. Revoke them? [y/N] ")
		if answer, _ := bufio.NewReader(stdin).ReadString('\n'); !strings.EqualFold(strings.TrimSpace(answer), "y") {
			return errors.New("nothing was revoked")
		}
	}
	limited, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	left, err := admin.Revoke(limited, *stateDir, namespace, name, func(left int) {
		_, _ = fmt.Fprintf(stderr, "%d being given back\n", left)
	})
	if err != nil {
		return err
	}
	if limited.Err() != nil {
		_ = admin.WriteTable(stdout, left, false)
		return fmt.Errorf("not all was given back within %s; it is tried again and again", *timeout)
	}
	_, err = fmt.Fprintf(stdout, "All that pod %s held is given back.\n", *pod)
	return err
}
