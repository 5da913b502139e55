package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/fleet"
)

// errPartial marks that what was printed is not of every node.
var errPartial = errors.New("not every node was reached")

// everywhere are the flags of a command that can be for every node.
type everywhere struct {
	allNodes   bool
	kubeconfig string
	fleet      fleet.Fleet
}

func (e *everywhere) define(flags *flag.FlagSet) {
	flags.BoolVar(&e.allNodes, "all-nodes", false, "do so on every node, by pods/exec and with your own rights")
	flags.StringVar(&e.kubeconfig, "kubeconfig", "", "`path` of a kubeconfig for --all-nodes (default: as kubectl)")
	flags.StringVar(&e.fleet.Namespace, "provider-namespace", "leasehold", "`namespace` of the provider's pods, for --all-nodes")
}

// prepare is to be called once, when the flags are parsed.
func (e *everywhere) prepare(flags *flag.FlagSet) error {
	if given := given(flags); !e.allNodes {
		if given["kubeconfig"] || given["provider-namespace"] {
			return fmt.Errorf("%w: --kubeconfig and --provider-namespace are for --all-nodes", errUsage)
		}
		return nil
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // what client-go has to say of an exchange comes back as an error too
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = e.kubeconfig
	var err error
	if e.fleet.Config, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig(); err != nil {
		return fmt.Errorf("finding the Kubernetes API: %w", err)
	}
	return nil
}

// run runs a command of the provider's program, which prints a report as JSON, on every node. Its error says that none could be asked.
func (e *everywhere) run(ctx context.Context, command fleet.Command) (admin.ClusterReport, error) {
	all := admin.NewClusterReport()
	command.MaxOutput = admin.MaxReport
	answers, err := e.fleet.Run(ctx, command)
	if err = cmp.Or(err, ctx.Err()); err != nil {
		return all, err
	}
	for _, answer := range answers {
		report, err := admin.ParseReport(answer.Node, answer.Output)
		if err == nil { // whether or not all went well: the report tells
			all.Nodes = append(all.Nodes, report)
			continue
		}
		if answer.Err != nil {
			err = answer.Err
		}
		all.Unreachable = append(all.Unreachable, admin.Unreachable{Node: answer.Node, Pod: answer.Pod, Problem: err.Error()})
	}
	return all, nil
}

// whole returns an errPartial if a report is not of every node.
func whole(r admin.ClusterReport) error {
	if len(r.Unreachable) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d answered, and what the others hold is not known", errPartial, len(r.Nodes))
}
