package admin

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

const (
	drainPath  = "/v1/drain"
	revokePath = "/v1/revoke"
)

// drain has what ended given back, and with force=true everything, and tells what is held then.
func (p Provider) drain(w http.ResponseWriter, r *http.Request) {
	force, err := strconv.ParseBool(r.FormValue("force"))
	if err != nil {
		http.Error(w, "force must be true or false", http.StatusBadRequest)
		return
	}
	// It waits for logins and reads under way, and asks the API server for pods, longer than an answer may take elsewhere.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	if err := p.GiveBack(r.Context(), force); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	p.tell(w, r)
}

// revoke has all given back that one pod holds, and tells what is held then.
func (p Provider) revoke(w http.ResponseWriter, r *http.Request) {
	namespace, pod := r.FormValue("namespace"), r.FormValue("pod")
	revoked, err := p.RevokePod(namespace, pod)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case revoked == 0:
		http.Error(w, fmt.Sprintf("nothing is held for pod %q of namespace %q on this node", pod, namespace), http.StatusNotFound)
	default:
		p.tell(w, r)
	}
}

// pace is the time between two looks at what is being given back.
const pace = time.Second

// Drain has the provider that keeps its state in stateDir give back what pods left that are over, and with force everything. It returns
// when nothing is being given back any more, or when ctx ends, with what is held then. progress is called with how many grants are being
// given back, when that changes.
func Drain(ctx context.Context, stateDir string, force bool, progress func(left int)) (Report, error) {
	r, err := ask[Report](ctx, stateDir, http.MethodPost, drainPath+"?force="+strconv.FormatBool(force))
	if err != nil {
		return r, err
	}
	return await(ctx, stateDir, r, Selection{}, progress)
}

// Revoke does the same for what one pod holds, whether or not it runs, and reports on that pod only.
func Revoke(ctx context.Context, stateDir, namespace, pod string, progress func(left int)) (Report, error) {
	r, err := ask[Report](ctx, stateDir, http.MethodPost, revokePath+"?"+url.Values{"namespace": {namespace}, "pod": {pod}}.Encode())
	if err != nil {
		return r, err
	}
	return await(ctx, stateDir, r, Selection{Namespace: namespace, Pod: pod}, progress)
}

// await looks again and again, beginning with r, until nothing of what is selected is being given back, or ctx ends. What is left to expire
// is not given back.
func await(ctx context.Context, stateDir string, r Report, selected Selection, progress func(left int)) (Report, error) {
	for last := 0; ; {
		r = selected.Of(r)
		left := r.Revoking()
		if left != last {
			progress(left)
		}
		if last = left; left == 0 {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-time.After(pace):
		}
		now, err := Fetch(ctx, stateDir)
		if err == nil {
			r = now
		} else if ctx.Err() == nil {
			return r, err
		}
	}
}

// WriteEnds writes for people when each thing that is held ends by itself, the last first. now is the wall clock.
func WriteEnds(w io.Writer, r Report, now time.Time) error {
	return writeEnds(newTable(w, false), []Report{r}, now)
}

func writeEnds(t table, reports []Report, now time.Time) error {
	type end struct {
		grant placed
		what  string
		in    int64
	}
	var ends []end
	for _, g := range placedGrants(reports) {
		var token int64
		if g.TokenSeconds != nil {
			token = *g.TokenSeconds
		}
		ends = append(ends, end{g, "token of role " + g.Role, token})
		for _, l := range g.Leases {
			ends = append(ends, end{g, l.Path, min(l.Seconds, token)}) // a lease ends with its token
		}
	}
	slices.SortStableFunc(ends, func(a, b end) int { return cmp.Compare(b.in, a.in) })
	t.row("NODE", "POD", "VOLUME", "STATE", "HELD", "ENDS", "IN")
	for _, e := range ends {
		at := "never"
		if e.in < noEnd {
			at = now.Add(time.Duration(e.in) * time.Second).UTC().Format(time.RFC3339)
		}
		t.row(e.grant.node, e.grant.Namespace+"/"+e.grant.Pod, e.grant.Volume, e.grant.State, e.what, at, left(e.in))
	}
	return t.Flush()
}
