package pods

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// What the kernel says when its queue ran over, which needs more events than a test should make.
func TestLostEventsWakeAllThatWait(t *testing.T) {
	j := New(Config{})
	for uid, watch := range map[string]int{"a": 1, "b": 2, "unwatched": 0} {
		j.volumes[spec.VolumeKey{PodUID: uid}] = &memory{watch: watch}
	}
	var events bytes.Buffer
	for _, event := range []unix.InotifyEvent{
		{Wd: 2, Mask: unix.IN_DELETE_SELF},
		{Wd: 2, Mask: unix.IN_IGNORED},
		{Wd: 7, Mask: unix.IN_DELETE_SELF}, // its volume was forgotten
		{Wd: -1, Mask: unix.IN_Q_OVERFLOW},
	} {
		if err := binary.Write(&events, binary.NativeEndian, event); err != nil {
			t.Fatal(err)
		}
	}
	var woken []string
	j.OnUnmount(func(uid string) { woken = append(woken, uid) })
	if err := j.hear(&events); !errors.Is(err, io.EOF) {
		t.Errorf("hear: %v", err)
	}
	slices.Sort(woken)
	if want := []string{"a", "b", "b"}; !slices.Equal(woken, want) {
		t.Errorf("woken: %q, want %q", woken, want)
	}
}
