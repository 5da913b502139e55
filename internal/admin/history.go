package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/leasehold-csi/leasehold/internal/keeper"
)

const (
	eventsPath = "/v1/events"
	// maxOfPod and maxEvents bound what is remembered, of one pod and of the node; maxSays bounds a sentence, in bytes.
	maxOfPod  = 32
	maxEvents = 4096
	maxSays   = 1000
)

// eventsVersion is to Timeline what reportVersion is to Report.
const eventsVersion = 1

// Timeline is what happened on one node since its provider started, as far as it is remembered.
type Timeline struct {
	Version int    `json:"version"`
	Node    string `json:"node"`
	// Since is when the provider started: of what was before, only its store knows. Killed: the provider before it did not leave in order.
	Since  time.Time `json:"since"`
	Killed bool      `json:"killed,omitempty"`
	// Events are in the order in which they happened first, the newest last.
	Events []Event `json:"events"`
}

// Event is one change, or one failure that came again and again.
type Event struct {
	At             time.Time `json:"at"`
	Namespace      string    `json:"namespace"`
	Pod            string    `json:"pod"`
	UID            string    `json:"uid"`
	ServiceAccount string    `json:"serviceAccount,omitempty"`
	Volume         string    `json:"volume"`
	Class          string    `json:"class,omitempty"`
	// Grant is the id of the grant; absent where there was none.
	Grant string `json:"grant,omitempty"`
	// Vault, AuthMount and Role are where the login was made, or is tried.
	Vault     string `json:"vault,omitempty"`
	AuthMount string `json:"authMount,omitempty"`
	Role      string `json:"role,omitempty"`
	Kind      string `json:"kind"`
	// Path is what was read, or whose lease it is; absent for the token and for all of a grant.
	Path string `json:"path,omitempty"`
	// Says is a sentence for people.
	Says string `json:"says"`
	// Warning: somebody should look. Trouble is where the cause of a failure lies, if that is known.
	Warning bool   `json:"warning"`
	Trouble string `json:"trouble,omitempty"`
	// Count is how often it happened, first at At and last at Last.
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

// History remembers the last changes of each pod in memory. It is bounded: of pods that are gone the oldest are forgotten first.
type History struct {
	since  time.Time
	killed bool

	mu    sync.Mutex
	pods  map[string]*story // :: UID → what happened to the pod
	count int
}

// story is what happened to one pod.
type story struct {
	events []Event // by Last
	grants map[string]bool
}

// NewHistory returns a History that begins now. killed says that the provider before this one did not leave in order.
func NewHistory(killed bool) *History {
	return &History{since: time.Now(), killed: killed, pods: make(map[string]*story)}
}

// Add remembers a change.
func (h *History) Add(c keeper.Change) {
	e := Event{
		At: c.At.UTC(), Namespace: c.Pod.Namespace, Pod: c.Pod.Name, UID: c.Pod.UID, ServiceAccount: c.Pod.ServiceAccount, Volume: c.Volume, Class: c.Class,
		Grant: c.Grant, Vault: c.Server.Address, AuthMount: c.Auth.Mount, Role: c.Auth.Role, Kind: string(c.Kind), Path: c.Path, Says: cut(c.Says()), Warning: c.Warning(), Trouble: string(c.Trouble), Count: 1, Last: c.At.UTC(),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.pods[e.UID]
	if s == nil {
		s = &story{grants: make(map[string]bool)}
		h.pods[e.UID] = s
	}
	switch {
	case c.Kind.Final():
		delete(s.grants, c.Grant)
	case c.Grant != "":
		s.grants[c.Grant] = true
	}
	h.count += s.add(e)
	for h.count > maxEvents {
		h.forgetOne()
	}
}

// add takes an event, and returns how many more there are now.
func (s *story) add(e Event) (more int) {
	if i := s.same(e); i >= 0 {
		e.At, e.Count = s.events[i].At, s.events[i].Count+1
		s.events = append(slices.Delete(s.events, i, i+1), e)
		return 0
	}
	s.events = append(s.events, e)
	if len(s.events) > maxOfPod {
		s.events = slices.Delete(s.events, 0, 1)
		return 0
	}
	return 1
}

// same is the index of the event that e is a repetition of: the same of the same volume, with nothing of another kind after it. -1 for none.
func (s *story) same(e Event) int {
	for i, old := range slices.Backward(s.events) {
		switch {
		case old.Volume != e.Volume:
		case old.Kind != e.Kind:
			return -1
		case old.Grant == e.Grant && old.Path == e.Path && old.Trouble == e.Trouble && (old.Says == e.Says || e.Kind == string(keeper.Renewed)):
			return i
		}
	}
	return -1
}

// forgetOne forgets the oldest event of the pod that was heard of longest ago, if possible of one that holds nothing any more. The caller
// holds the lock.
func (h *History) forgetOne() {
	var oldest string
	for uid, s := range h.pods {
		if o := h.pods[oldest]; o == nil || s.before(o) {
			oldest = uid
		}
	}
	s := h.pods[oldest]
	h.count--
	if s.events = slices.Delete(s.events, 0, 1); len(s.events) == 0 {
		delete(h.pods, oldest)
	}
}

// before tells which of two stories is forgotten first.
func (s *story) before(o *story) bool {
	if gone := len(s.grants) == 0; gone != (len(o.grants) == 0) {
		return gone
	}
	return s.events[len(s.events)-1].Last.Before(o.events[len(o.events)-1].Last)
}

// of returns what is remembered of the pods of a namespace and name; empty for any.
func (h *History) of(node, namespace, pod string) Timeline {
	out := Timeline{Version: eventsVersion, Node: node, Since: h.since.UTC(), Killed: h.killed, Events: []Event{}}
	h.mu.Lock()
	for _, s := range h.pods {
		for _, e := range s.events {
			if (namespace == "" || namespace == e.Namespace) && (pod == "" || pod == e.Pod) {
				out.Events = append(out.Events, e)
			}
		}
	}
	h.mu.Unlock()
	out.sort()
	return out
}

// cut bounds a sentence, and leaves nothing in it that a terminal obeys.
func cut(says string) string {
	says = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, says)
	if len(says) <= maxSays {
		return says
	}
	return strings.ToValidUTF8(says[:maxSays], "") + "…"
}

// limited leaves the events that happened last, at most limit of them.
func (t Timeline) limited(limit int) Timeline {
	byLast := slices.SortedStableFunc(slices.Values(t.Events), func(a, b Event) int { return b.Last.Compare(a.Last) })
	t.Events = byLast[:min(limit, len(byLast))]
	t.sort()
	return t
}

func (t Timeline) sort() {
	slices.SortStableFunc(t.Events, func(a, b Event) int { return cmp.Or(a.At.Compare(b.At), strings.Compare(a.UID, b.UID)) })
}

func (p Provider) events(w http.ResponseWriter, r *http.Request) {
	timeline := p.History.of(p.Node, r.FormValue("namespace"), r.FormValue("pod"))
	if text := r.FormValue("limit"); text != "" {
		limit, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			http.Error(w, "limit must be a number of events", http.StatusBadRequest)
			return
		}
		timeline = timeline.limited(int(limit))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(timeline)
}

// FetchEvents asks the provider that keeps its state in stateDir what happened to the pods of a namespace and name; empty for any.
func FetchEvents(ctx context.Context, stateDir, namespace, pod string) (Timeline, error) {
	return ask[Timeline](ctx, stateDir, http.MethodGet, eventsPath+"?"+url.Values{"namespace": {namespace}, "pod": {pod}}.Encode())
}
