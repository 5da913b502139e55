package provider

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"time"

	"go.opentelemetry.io/otel/trace"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/leasehold-csi/leasehold/internal/effect"
	"github.com/leasehold-csi/leasehold/internal/keeper"
	"github.com/leasehold-csi/leasehold/internal/render"
	"github.com/leasehold-csi/leasehold/internal/span"
	"github.com/leasehold-csi/leasehold/internal/spec"
)

const (
	// answerWithin is the longest that a Mount lets its caller wait; kubelet gives up after 2 m.
	answerWithin = time.Minute
	// answerBefore is how long before the caller's deadline Mount answers at the latest.
	answerBefore = 5 * time.Second

	apiVersion  = "v1alpha1"
	runtimeName = "leasehold"

	noFile = "none" // stands for the files of a volume whose objects are all optional and not there
)

// Config is what a Service works with. Every field but Refused must be set.
type Config struct {
	Keeper *keeper.Keeper
	// Defaults fill what a SecretProviderClass leaves out; its Lists are the Service's own.
	Defaults spec.Defaults
	// VersionKey returns the key of the object versions, which are shown to whoever may read SecretProviderClassPodStatuses.
	VersionKey func() []byte
	// Version is Leasehold's own.
	Version string
	// Refused is told of each Mount that is refused, for one of Reasons; nil for nobody.
	Refused func(reason string)
}

// Service answers the driver. It has no state of its own but what spares it work.
type Service struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
	Config
}

// New returns a Service.
func New(c Config) *Service {
	c.Defaults.Lists = spec.NewLists()
	if c.Refused == nil {
		c.Refused = func(string) {}
	}
	return &Service{Config: c}
}

// Version implements v1alpha1.CSIDriverProviderServer.
func (s *Service) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{Version: apiVersion, RuntimeName: runtimeName, RuntimeVersion: s.Config.Version}, nil
}

// Mount implements v1alpha1.CSIDriverProviderServer.
func (s *Service) Mount(ctx context.Context, in *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	files, req, err := s.mount(ctx, in)
	if err != nil {
		s.Refused(reasonOf(err))
		return nil, statusOf(err, req)
	}
	effect.After(effect.Before("mount reply"))
	return s.response(files), nil
}

// mount returns the files that a Mount is answered with; the request is nil when it could not be parsed.
func (s *Service) mount(ctx context.Context, in *v1alpha1.MountRequest) ([]render.File, *spec.Request, error) {
	req, err := spec.Parse(spec.Input{
		Attributes: in.GetAttributes(), Secrets: in.GetSecrets(), TargetPath: in.GetTargetPath(), Permission: in.GetPermission(),
	}, s.Defaults)
	if err != nil {
		if refused, ok := errors.AsType[*spec.Error](err); ok {
			s.Keeper.Refused(refused)
		}
		return nil, nil, err
	}
	if call := trace.SpanFromContext(ctx); call.IsRecording() {
		call.SetAttributes(span.Volume(req.Pod, req.Volume.Volume, req.Class, req.Spec.Auth)...)
	}
	ctx, cancel := context.WithTimeout(ctx, patience(ctx))
	defer cancel()
	files, err := s.Keeper.Acquire(ctx, req)
	return files, req, err
}

// patience is how long the caller may be kept waiting.
func patience(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return answerWithin
	}
	left := time.Until(deadline)
	return min(answerWithin, max(left-answerBefore, left/2))
}

func (s *Service) response(files []render.File) *v1alpha1.MountResponse {
	out, mac := new(v1alpha1.MountResponse), hmac.New(sha256.New, s.VersionKey())
	for _, f := range files {
		out.Files = append(out.Files, &v1alpha1.File{Path: f.Path, Mode: f.Mode, Contents: f.Contents})
		out.ObjectVersion = append(out.ObjectVersion, &v1alpha1.ObjectVersion{Id: f.Path, Version: version(mac, f)})
	}
	if len(files) == 0 { // the driver takes an answer without versions for an error
		out.ObjectVersion = []*v1alpha1.ObjectVersion{{Id: noFile, Version: noFile}}
	}
	return out
}

// version changes with the file, is the same wherever the file and the key of mac are, and tells nothing of it.
func version(mac hash.Hash, f render.File) string {
	head := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(f.Path)+4), uint64(len(f.Path)))
	head = binary.BigEndian.AppendUint32(append(head, f.Path...), uint32(f.Mode))
	mac.Reset()
	_, _ = mac.Write(head)
	_, _ = mac.Write(f.Contents)
	return base64.URLEncoding.EncodeToString(mac.Sum(nil))
}
