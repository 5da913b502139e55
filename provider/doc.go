// Package provider is the face that Leasehold shows to the Secrets Store CSI driver: the two calls of
// sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1, and the one place where errors become gRPC codes and sentences.
//
// # What the driver expects
//
// Mount is called again and again for one volume: after every failed publish, and with rotation on at every republish of
// kubelet. It must answer the whole file set each time. There is no call for the end of a volume.
//
// # Final codes only
//
// Unavailable, DeadlineExceeded, ResourceExhausted, Aborted and Canceled are never answered. With rotation on, kubelet takes
// them for "perhaps mounted", and the driver (v1.6.0) then reports success for a volume that it never filled: the pod starts
// with an empty folder. For the same reason Mount answers before its caller's deadline does.
//
// # Whose eyes
//
// The text of an error becomes an event on the pod. It says what was tried (server, auth mount, role, service account, path),
// what Vault said, and the next step; it never holds a token, a lease id or a secret's value. Package vault knows the sentences.
package provider
