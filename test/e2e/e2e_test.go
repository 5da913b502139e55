//go:build e2e

package e2e_test

import (
	"testing"

	"github.com/leasehold-csi/leasehold/test/bed"
)

type scenario struct {
	name string
	run  func(*testing.T)
}

// TestEndToEnd runs every scenario on one bed: first, at the same time, those that disturb nobody, then those that stop a
// part or count what the provider does, and at last the look at what is left.
func TestEndToEnd(t *testing.T) {
	s := start(t)
	together := []scenario{
		{"the examples of the documentation", s.examples},
		{"Vault is as the unit tests take it to be", s.vaultIsAsTheFake},
		{"two volumes of one pod", s.twoVolumes},
		{"key-value secrets and a certificate", s.staticSecrets},
		{"templates and formats", s.renders},
		{"templates that are refused", s.refusesTemplates},
		{"logins by AppRole", s.logsInByAppRole},
		{"logins by certificate", s.logsInByCertificate},
		{"a pod older than its lease's TTL", s.outlivesTTL},
		{"a graceful end with a preStop", s.gracefulEnd},
		{"a job that completes", s.jobCompletes},
		{"a forced delete", s.forcedDelete},
		{"a name that is used again", s.nameIsUsedAgain},
		{"a class that changes", s.classChanges},
		{"leases that are kept at the end", s.keptAtTheEnd},
		{"tokens that cannot carry leases", s.tokensThatCannotCarry},
		{"what is told of a pod", s.explains},
		{"credentials that are revoked by hand", s.revokedByHand},
		{"credentials that will lapse", s.willLapse},
		{"a wrong service account", s.wrongServiceAccount},
		{"bad classes", s.badClasses},
		{"bad answers of Vault", s.badAnswers},
		{"bad calls", s.badCalls},
		{"logins that are explained", s.explainedLogins},
		{"reads that are explained", s.explainedReads},
	}
	alone := []scenario{
		{"republish mints nothing", s.republishMintsNothing},
		{"the provider comes back", s.providerComesBack},
		{"a restart of the provider under mounts", s.restartUnderMounts},
		{"templates that would take the node", s.hostileTemplates},
		{"rights that are missing", s.rightsAreTold},
		{"a sealed Vault", s.sealedVault},
		{"how soon leases go", s.howSoon},
		{"ends without the provider", s.endsWithoutProvider},
		{"ends without Vault", s.endsWithoutVault},
		{"ends without the database", s.endsWithoutDatabase},
		{"ends without kubelet", s.endsWithoutKubelet},
		{"a node that is drained", s.drained},
		{"a store that is lost", s.storeIsLost},
	}
	if !s.hasKubelet() { // kubelet makes no difference to these; the first's pods are too many for one node
		together = append(together,
			scenario{"classes that people have", s.conformance},
			scenario{"manifests that the API server accepts", s.acceptsManifests},
			scenario{"a node that the existing provider leaves", s.existingLeaves},
			scenario{"traces that a collector receives", s.tracesAreSent},
		)
		alone = append(alone, scenario{"a node that is migrated", s.migrates}) // the provider's sockets are its process's arguments
	} else {
		together = append(together, scenario{"an eviction", s.evicted})
		alone = append(alone,
			scenario{"ends without the API server", s.endsWithoutAPIServer},
			scenario{"ends without the driver", s.endsWithoutDriver},
			scenario{"other volumes after a restart", s.otherVolumes},
			scenario{"every node is asked", s.allNodes},
			scenario{"installed and taken away", s.installed},
		)
	}
	if s.bed.State().Form != bed.Kind { // whose pods cannot be reached from here
		alone = append([]scenario{{"a Prometheus that finds nothing wrong", s.monitored}}, alone...)
	}
	t.Run("together", func(t *testing.T) {
		for _, c := range together {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.run(t)
			})
		}
	})
	t.Run("alone", func(t *testing.T) {
		for _, c := range alone {
			t.Run(c.name, c.run)
		}
	})
	t.Run("nothing is left", s.nothingIsLeft)
	t.Run("no secret was told", s.noSecretWasTold)
}
