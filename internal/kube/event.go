package kube

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	eventutil "k8s.io/client-go/tools/record/util"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

const (
	component = "leasehold"
	// eventQueue is more than a node's pods say at once when Vault went away; beyond it events are dropped rather than waited for.
	eventQueue = 1024
	// maxMessage is what kubectl and the newer events API bear, in bytes.
	maxMessage = 1024
	// An API server that is away for longer than eventTries pauses costs the event.
	eventTries = 12
	eventPause = 10 * time.Second
)

// Event posts an event on the pod: eventtype is corev1.EventTypeNormal or EventTypeWarning, reason is one CamelCase word,
// message is a sentence, cut at 1024 bytes. It never blocks and reports no failure: events are posted by Run in the
// background, equal ones counted as one, and too many of one pod and reason are dropped.
func (c *Cluster) Event(pod spec.Pod, eventtype, reason, message string) {
	now := metav1.Now()
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace,
			Name:      eventutil.GenerateEventName(pod.Name, now.UnixNano()),
		},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID),
		},
		Type:                eventtype,
		Reason:              reason,
		Message:             cut(message),
		Source:              corev1.EventSource{Component: component, Host: c.node},
		ReportingController: component,
		ReportingInstance:   c.node,
		FirstTimestamp:      now,
		LastTimestamp:       now,
		Count:               1,
	}
	select {
	case c.events <- event:
	default:
		c.log.Warn("event dropped, too many are waiting", "pod", pod.Namespace+"/"+pod.Name, "reason", reason)
	}
}

// postEvents stands where client-go's broadcaster could: that one starts goroutines when made, and its requests neither
// end with a context nor can be waited for. The part that matters, its aggregation, is used as it is.
func (c *Cluster) postEvents(ctx context.Context) {
	correlator := record.NewEventCorrelatorWithOptions(record.CorrelatorOptions{SpamKeyFunc: podAndReason})
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-c.events:
			c.postEvent(ctx, correlator, event)
		}
	}
}

// podAndReason is what may be said 25 times, and then once in five minutes: what goes well, often, must not drown a warning.
func podAndReason(event *corev1.Event) string {
	return string(event.InvolvedObject.UID) + " " + event.Reason
}

func (c *Cluster) postEvent(ctx context.Context, correlator *record.EventCorrelator, event *corev1.Event) {
	result, err := correlator.EventCorrelate(event)
	if err != nil || result.Skip {
		c.log.Debug("event not posted", "reason", event.Reason, "err", err)
		return
	}
	for try := 1; ; try++ {
		posted, err := c.writeEvent(ctx, result)
		if err == nil {
			correlator.UpdateState(posted)
			return
		}
		if refused(err) || try == eventTries {
			c.log.Warn("event not posted", "pod", event.Namespace+"/"+event.InvolvedObject.Name, "reason", event.Reason, "err", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(eventPause):
		}
	}
}

func (c *Cluster) writeEvent(ctx context.Context, result *record.EventCorrelateResult) (*corev1.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	events := c.poster.CoreV1().Events(result.Event.Namespace)
	if result.Event.Count > 1 {
		posted, err := events.Patch(ctx, result.Event.Name, types.StrategicMergePatchType, result.Patch, metav1.PatchOptions{})
		if !apierrors.IsNotFound(err) {
			return posted, err
		}
		// The API server forgets events after an hour; the count goes on in a new one.
		result.Event.ResourceVersion = ""
	}
	return events.Create(ctx, result.Event, metav1.CreateOptions{})
}

// refused tells an answer that will not change, for example because the namespace is going, from an API server in trouble.
func refused(err error) bool {
	status, ok := errors.AsType[*apierrors.StatusError](err)
	return ok && status.Status().Code < http.StatusInternalServerError && !apierrors.IsTooManyRequests(err)
}

// cut bounds a message without splitting a character.
func cut(message string) string {
	message = strings.ToValidUTF8(message, "?")
	if len(message) <= maxMessage {
		return message
	}
	const mark = "…"
	end := maxMessage - len(mark)
	for !utf8.RuneStart(message[end]) {
		end--
	}
	return message[:end] + mark
}
