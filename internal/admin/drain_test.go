package admin_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leasehold-csi/leasehold/internal/admin"
	"github.com/leasehold-csi/leasehold/internal/grant"
)

// TestDrain: the provider is told once, and then watched until nothing is being given back.
func TestDrain(t *testing.T) {
	for _, force := range []bool{false, true} {
		dir := folder(t)
		var asked []bool
		var lists atomic.Int64
		p := provider(func() ([]grant.Grant, error) {
			grants := held()
			if lists.Add(1) > 2 { // given back meanwhile
				grants = slices.DeleteFunc(grants, func(g grant.Grant) bool { return g.State == grant.Revoking })
			}
			return grants, nil
		})
		p.GiveBack = func(_ context.Context, all bool) error { asked = append(asked, all); return nil }
		serve(t, dir, p)
		var progress []int
		report, err := admin.Drain(t.Context(), dir, force, func(left int) { progress = append(progress, left) })
		if err != nil || len(report.Grants) != 2 {
			t.Fatalf("%+v, %v", report, err)
		}
		if !slices.Equal(progress, []int{1, 0}) {
			t.Errorf("progress %v", progress)
		}
		if !slices.Equal(asked, []bool{force}) {
			t.Errorf("force %t: the keeper was asked %v", force, asked)
		}
		var ends strings.Builder
		if err := admin.WriteEnds(&ends, report, time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)); err != nil {
			t.Fatal(err)
		}
		golden(t, "ends.txt", ends.String())
	}
}

// TestDrainLeaves: what its class leaves to expire is told of, and not waited for.
func TestDrainLeaves(t *testing.T) {
	dir := folder(t)
	p := provider(func() ([]grant.Grant, error) {
		grants := held()
		for i := range grants {
			grants[i].Expire = "the class says onPodEnd: expire"
		}
		return grants, nil
	})
	p.GiveBack = func(context.Context, bool) error { return nil }
	serve(t, dir, p)
	report, err := admin.Drain(t.Context(), dir, false, func(left int) { t.Errorf("%d are waited for", left) })
	if err != nil || len(report.Grants) != 3 {
		t.Errorf("%+v, %v", report, err)
	}
}

// TestDrainTakesTooLong: what is held when the time is up is told.
func TestDrainTakesTooLong(t *testing.T) {
	dir := folder(t)
	p := provider(func() ([]grant.Grant, error) { return held(), nil })
	p.GiveBack = func(context.Context, bool) error { return nil }
	serve(t, dir, p)
	ctx, cancel := context.WithCancel(t.Context())
	report, err := admin.Drain(ctx, dir, false, func(int) { cancel() })
	if err != nil || len(report.Grants) != 3 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestDrainFails(t *testing.T) {
	dir := folder(t)
	p := provider(func() ([]grant.Grant, error) { return held(), nil })
	p.GiveBack = func(context.Context, bool) error { return errors.New("broken") }
	serve(t, dir, p)
	if _, err := admin.Drain(t.Context(), dir, true, func(int) {}); err == nil || !strings.Contains(err.Error(), "500 Internal Server Error: broken") {
		t.Error(err)
	}
}

// TestRevoke: only the pod's own is waited for, and told of.
func TestRevoke(t *testing.T) {
	dir := folder(t)
	var asked []string
	p := provider(func() ([]grant.Grant, error) {
		return slices.DeleteFunc(held(), func(g grant.Grant) bool { return g.Pod.Name == "app" && g.State == grant.Revoking }), nil
	})
	p.RevokePod = func(namespace, name string) (int, error) {
		asked = append(asked, namespace+"/"+name)
		return map[string]int{"app": 1}[name], nil
	}
	serve(t, dir, p)
	report, err := admin.Revoke(t.Context(), dir, "shop", "app", func(int) {})
	if err != nil || len(report.Grants) != 1 || report.Grants[0].ID != "3" || !slices.Equal(asked, []string{"shop/app"}) {
		t.Errorf("%q: %+v, %v", asked, report, err)
	}
	if _, err := admin.Revoke(t.Context(), dir, "shop", "other", func(int) {}); err == nil || !strings.Contains(err.Error(), `nothing is held for pod "other"`) {
		t.Error(err)
	}
}
