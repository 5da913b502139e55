// Package spec says what one Mount call wants: which Vault, which login, which reads, which files.
//
// It is parsed from text that tenants write (a SecretProviderClass and a pod's volumeAttributes, merged by the driver), so
// everything here is strict, bounded and reported fault by fault. It knows neither Kubernetes' nor Vault's API.
package spec

import (
	"slices"
	"strings"
	"time"

	"github.com/leasehold-csi/leasehold/internal/secret"
)

// Request is one Mount call, parsed.
type Request struct {
	Pod    Pod
	Volume VolumeKey
	// KubeletDir is the root folder of the kubelet that mounts, as that kubelet names it.
	KubeletDir string
	// Class is the SecretProviderClass's name; its namespace is the pod's.
	Class string
	Spec  Spec
	// SecretID is AppRole's second half, from the Secret that the pod's nodePublishSecretRef names; zero when it has none. Wrapped: it
	// is the token of a response wrapping that holds the secret-id, and that can be used once.
	SecretID secret.Value
	Wrapped  bool
	// JWT is the pod's service account token for Spec.Auth.Audience; the zero value when kubelet sent none, which
	// matters only when a login is needed.
	JWT secret.Value
	// Audience is the audience that JWT was looked for under; never empty.
	Audience string
	// Warnings are sentences about what has no effect, or another than its author may think; fit for anybody's eyes.
	Warnings []string
}

// Pod is the pod that mounts, as kubelet names it in the Mount call.
type Pod struct {
	Namespace, Name, UID, ServiceAccount string
}

// VolumeKey identifies one volume of one pod on this node. Names of pods are used again, UIDs are not.
type VolumeKey struct {
	PodUID string
	// Volume is the volume's name in the pod spec. It arrives only as a folder of target_path.
	Volume string
}

// Spec is the wish itself. Two calls with the same Digest wish the same.
type Spec struct {
	Server Server
	// Namespace is the X-Vault-Namespace of every call; empty for none.
	Namespace string
	Auth      Auth
	// Objects may be shared with other requests, and so must not be changed.
	Objects  []Object
	OnPodEnd OnPodEnd
	// SyncedLeases is for leases behind objects that the driver also copies into Secrets.
	SyncedLeases SyncedLeases
	// Refresh is Care.Refresh of reads whose objects do not say; zero means DefaultRefresh.
	Refresh time.Duration
	// Digest covers every parameter that a user wrote and the defaults that filled the gaps; it is no secret.
	Digest string
}

// OnPodEnd says what becomes of the leases at the pod's end.
type OnPodEnd string

// The values of the parameter onPodEnd; a class that does not say means RevokeOnPodEnd.
const (
	RevokeOnPodEnd OnPodEnd = "revoke"
	// ExpireOnPodEnd stops renewing and lets them run out.
	ExpireOnPodEnd OnPodEnd = "expire"
)

// SyncedLeases says what becomes of leases that a Secret shows too, so that other pods may use them.
type SyncedLeases string

// The values of the parameter syncedLeases; a class that does not say means ExpireSynced.
const (
	// ExpireSynced stops renewing at the pod's end and lets them run out.
	ExpireSynced SyncedLeases = "expire"
	// RevokeSynced revokes them with the pod, whoever else uses the Secret.
	RevokeSynced SyncedLeases = "revoke"
	// RefuseSynced mounts no leased object that is synced.
	RefuseSynced SyncedLeases = "refuse"
)

// Server is a Vault and how to trust it. It is comparable: equal servers share one connection pool.
type Server struct {
	// Address is scheme://host[:port] without a trailing slash; an operator's may have a path, or be unix:///path/of/a/socket.
	Address string
	// CACert and CADirectory are paths in the provider's own file system; empty for the system's roots.
	CACert, CADirectory string `json:",omitempty"`
	// ServerName overrides the name that the certificate is checked against; empty for the address's host.
	ServerName string `json:",omitempty"`
	// ClientCert and ClientKey are the provider's own mTLS pair; both or none.
	ClientCert, ClientKey string `json:",omitempty"`
	// Pair is a client certificate and its key that the pod brought, both in PEM; it stands in for ClientCert and ClientKey. Zero for none.
	Pair       secret.Value `json:"-"`
	SkipVerify bool         `json:",omitempty"`

	// Guarded: a tenant named the address, so that what is dialled must not be Reserved.
	Guarded bool `json:",omitempty"`
	// TLSFolder is what the TLS files that a tenant named lie in, links followed; empty when they may lie anywhere.
	TLSFolder string `json:",omitempty"`
}

// AuthMethod is a way to log in to Vault.
type AuthMethod string

// The methods.
const (
	// Kubernetes logs in with a service account token of the pod, at an auth mount of the kubernetes or the jwt method.
	Kubernetes AuthMethod = ""
	// AppRole logs in with Auth.RoleID and the pod's secret-id.
	AppRole AuthMethod = "approle"
	// Cert logs in with a client certificate: Server.Pair, or Server's own where the operator lets the pod's namespace use it.
	Cert AuthMethod = "cert"
)

// Auth is a login.
type Auth struct {
	Method AuthMethod `json:",omitempty"`
	// RoleID is AppRole's; empty for every other method.
	RoleID string `json:",omitempty"`
	// Mount is the auth mount without auth/ and slashes, for example kubernetes.
	Mount string
	// Role may be empty for Cert: Vault then takes whichever of its roles the certificate fits.
	Role string
	// Audience is what the class says; empty means the token for the provider's own name among those that kubelet sent.
	Audience string `json:",omitempty"`
}

// Read is one request to Vault. It is comparable: objects with equal reads share one answer, and so one lease.
type Read struct {
	// Method is GET, PUT or POST; or [Rendered].
	Method string
	// Path is normalised: no leading slash, no v1/.
	Path string
	// Query is the encoded query, for example version=2; empty for none.
	Query string `json:",omitempty"`
	// Args is the request body as canonical JSON; empty for none.
	Args string `json:",omitempty"`
}

// Object is one file of the volume, or with Each a folder of them.
type Object struct {
	// Name is the file's path in the volume.
	Name string
	Read Read
	// Key is the key in the answer's data, see [KeyPath]; empty for the whole answer, or for Keys.
	Key string
	// Keys are several keys for one file, in this order; empty for Key.
	Keys []string
	// Each: every key of the answer's data is a file of its own, in the folder Name.
	Each bool
	// Format is how the file is written.
	Format Format
	// Password is what a PKCS12 file is locked with: no secret, because it stands in the class. Empty for every other format.
	Password string
	// Optional: what is not in Vault makes no file, and no error.
	Optional bool
	// Template is rendered into the file; empty for an object that names what it reads. Then Read is of no request.
	Template string
	// Mode is the file's permission bits, at most 0777.
	Mode int32
	// Encoding is that of texts in a Raw file.
	Encoding Encoding
	// Care is what this object says of its read; see Spec.Care for what holds.
	Care Care
}

// Whole reports whether the object names no keys.
func (o Object) Whole() bool { return o.Key == "" && len(o.Keys) == 0 && !o.Each }

// Writes reports whether the object may write a file of that path.
func (o Object) Writes(path string) bool {
	if o.Each {
		folder, key, inside := strings.Cut(path, o.Name+"/")
		return inside && folder == "" && FileName(key) == nil
	}
	return path == o.Name
}

// Optional reports whether the volume can do without the answer of a read: all objects that it is for can.
func (s *Spec) Optional(r Read) bool {
	return !slices.ContainsFunc(s.Objects, func(o Object) bool { return o.Read == r && !o.Optional })
}

// Format is how a file is written.
type Format string

// The formats. All but Raw and PKCS12 end with a newline, or are empty.
const (
	// Raw writes a value as it is, and the whole answer as a JSON object of its data.
	Raw        Format = ""
	JSON       Format = "json"
	YAML       Format = "yaml"
	Dotenv     Format = "dotenv"
	Properties Format = "properties"
	// PEM joins the PEM blocks of values.
	PEM Format = "pem"
	// PKCS12 is a key store of such blocks: a private key, its certificate and the chain.
	PKCS12 Format = "pkcs12"
)

// Encoding says how Vault's text becomes the file's bytes.
type Encoding string

// The encodings of a value.
const (
	UTF8   Encoding = "utf-8"
	Base64 Encoding = "base64"
	Hex    Encoding = "hex"
)
