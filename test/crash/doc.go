// Package crash kills the provider right before and right after every effect it has: each request sent to Vault and each reply
// received, each commit of the store, each answer to a Mount. Each time a real provider on the light bed is then started again, goes on
// as the driver and kubelet have it go on, and must leave nothing behind.
package crash
