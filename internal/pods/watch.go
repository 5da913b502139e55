package pods

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/leasehold-csi/leasehold/internal/spec"
)

// reopenPace is how often inotify is asked for again when it could not be had.
const reopenPace = time.Minute

// OnUnmount sets the function that is told the UID of a pod that is over as soon as kubelet removed the folder of one of its
// volumes. It must not block, and must be set before Run.
func (j *Judge) OnUnmount(f func(podUID string)) { j.onUnmount = f }

// Run tells of removed folders until ctx ends, if the kernel's limits allow; it returns nil. It may be called once. Without it
// all works as well, but a removal is found only when the verdict's Check is over.
func (j *Judge) Run(ctx context.Context) error {
	for {
		if err := j.listen(ctx); ctx.Err() == nil {
			j.unwatchable(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reopenPace):
		}
	}
}

// listen opens inotify and passes on what it tells until ctx ends.
func (j *Judge) listen(ctx context.Context) error {
	events, err := j.inotify.open()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return j.hear(events) })
	group.Go(func() error {
		<-ctx.Done()
		return events.Close() // which ends a read
	})
	return group.Wait()
}

// hear reads events until that fails, as it does with the file's end.
func (j *Judge) hear(events io.Reader) error {
	buffer := make([]byte, 4096)
	for {
		n, err := events.Read(buffer)
		if err != nil {
			return fmt.Errorf("reading from inotify: %w", err)
		}
		for rest := buffer[:n]; len(rest) > 0; {
			var event unix.InotifyEvent
			if _, err := binary.Decode(rest, binary.NativeEndian, &event); err != nil {
				return fmt.Errorf("decoding an event of inotify: %w", err)
			}
			rest = rest[unix.SizeofInotifyEvent+int(event.Len):]
			for _, uid := range j.concerned(event) {
				j.onUnmount(uid)
			}
		}
	}
}

// concerned returns the pods that an event is about: when events were lost, all whose volumes are watched.
func (j *Judge) concerned(event unix.InotifyEvent) (uids []string) {
	if event.Mask&unix.IN_IGNORED != 0 { // the end of a watch, which follows the removal or was asked for
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for v, m := range j.volumes {
		if m.watch != 0 && (m.watch == int(event.Wd) || event.Mask&unix.IN_Q_OVERFLOW != 0) {
			uids = append(uids, v.PodUID)
		}
	}
	return uids
}

// watch has the pod of a remembered volume told of when the volume's folder is removed.
func (j *Judge) watch(v spec.VolumeKey) error {
	path, err := j.folders.path(v)
	if err != nil {
		return err
	}
	wd, err := j.inotify.add(path)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if m := j.volumes[v]; m != nil {
		m.watch = wd
	} else { // it was forgotten meanwhile
		j.inotify.remove(wd)
	}
	return nil
}

func (j *Judge) unwatch(v spec.VolumeKey) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if m := j.volumes[v]; m != nil {
		j.inotify.remove(m.watch)
		m.watch = 0
	}
}

// unwatchable tells once that the kernel cannot be relied on for news.
func (j *Judge) unwatchable(err error) {
	j.told.Do(func() {
		j.log.Warn("kubelet's folders cannot be watched: unmounts are found by looking again and again, so leases of ended pods may be given back late",
			"pause", slowPace, "err", err)
	})
}

// inotify tells of the removal of folders. The zero value, and one whose file is closed, watches nothing.
type inotify struct{ file atomic.Pointer[os.File] }

// open begins anew and returns where the events are to be read; its end ends all watches.
func (i *inotify) open() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("opening inotify: %w (is fs.inotify.max_user_instances too low?)", err)
	}
	file := os.NewFile(uintptr(fd), "inotify")
	i.file.Store(file)
	return file, nil
}

// add watches what is at the path, a link included, for its own removal: that of the files in it says nothing. The kernel tells of
// it once no process has it open any more. add returns the number of the watch, also of one that is there already; zero when
// nothing is watched.
func (i *inotify) add(path string) (wd int, err error) {
	i.control(func(fd int) {
		if wd, err = unix.InotifyAddWatch(fd, path, unix.IN_DELETE_SELF|unix.IN_DONT_FOLLOW); err != nil {
			err = fmt.Errorf("watching %s: %w (is fs.inotify.max_user_watches too low?)", path, err)
		}
	})
	return wd, err
}

// remove ends a watch, if it is there: the kernel ends one with its folder.
func (i *inotify) remove(wd int) {
	if wd != 0 {
		i.control(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(wd)) })
	}
}

// control calls f with the descriptor, which stays open meanwhile; it does not when there is none.
func (i *inotify) control(f func(fd int)) {
	file := i.file.Load()
	if file == nil {
		return
	}
	if conn, err := file.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { f(int(fd)) })
	}
}
