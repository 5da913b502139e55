// Package e2e holds the end-to-end tests: pods that mount Vault's secrets through the real driver, on the test bed of
// package bed. They are built with the tag e2e only, because a bed takes minutes to make.
//
//	BED=light go test -tags e2e -v -timeout 30m ./test/e2e     what make e2e-fast runs
//	BED=full  go test -tags e2e -v -timeout 60m ./test/e2e     what make e2e runs; root
//
// CLUSTER=kind turns the full form into the same tests in a cluster that kind makes.
//
// The tests make a bed of that form, share it and take it down. With BED_DIR they use the running bed in that folder and
// leave it as it is, which saves its start: go run ./test/bed/cmd up --no-kubelet --dir DIR.
//
// What is asserted is Vault's and PostgreSQL's own word: sys/leases/lookup, token accessors, pg_roles and the audit log.
// Every scenario has a namespace and a database role of its own, so that what it holds can be told from what others do.
package e2e
