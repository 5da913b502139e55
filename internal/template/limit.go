package template

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// memory is what a child's heap may grow to, and all else that it maps after its start, which had less than 5 MiB beside the heap. Those
	// of a node together fit into the memory limit of its manifest beside the provider: no limit relies on the kernel's choice of whom to
	// kill.
	memory = 26 << 20
	// piece is the most that it may map at once, which is also what Go's runtime grows the heap by. The kernel does not count what is mapped
	// in the place of something reserved, as that does, before it has it: RLIMIT_DATA alone refuses only the next mapping.
	piece = 4 << 20
	// stack ends a template that calls itself without end before memory does.
	stack = 4 << 20
	// cpuTime is whole seconds.
	cpuTime = 5 * time.Second
)

// errUnlimited is the answer of a node that does not let a child limit itself.
var errUnlimited = errors.New("rendering: the process for it could not limit itself (seccomp, setrlimit, prctl), and so runs no template")

// limit takes from this process all but computing with bounded memory and time, reading and writing what it has open, and ending. There is
// no way back.
func limit() error {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) // not what anything relies on
	runtime.GOMAXPROCS(1)
	debug.SetMaxStack(stack)
	debug.SetMemoryLimit(memory - 2*piece)      // it collects before it is refused
	time.AfterFunc(time.Hour, func() {}).Stop() // the runtime's poller must have its descriptors before there are none
	data, err := mapped()
	if err != nil {
		return err
	}
	// How much of the heap there is at the start is chance: one child would have more than the next.
	data -= heap()
	// Of the group, because on Linux a process's priority is each thread's own.
	if err := unix.Setpriority(unix.PRIO_PGRP, 0, 10); err != nil {
		return err
	}
	for _, l := range []struct {
		resource int
		most     uint64
	}{
		{unix.RLIMIT_CPU, uint64(cpuTime / time.Second)},
		{unix.RLIMIT_DATA, data + memory - piece},
		{unix.RLIMIT_FSIZE, 0},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, 0}, // what is open stays so
	} {
		// The kernel kills where the hard limit of CPU time is reached; the soft one Go would not heed.
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.most, Max: l.most}); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	return confine()
}

// heap is what of the mapped is Go's heap, with the goroutines' stacks, used or not.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapSys + m.StackInuse
}

// mapped is what counts against RLIMIT_DATA, in bytes. Most of it is tables of Go's runtime that are hardly used.
func mapped() (uint64, error) {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 6 {
		return 0, fmt.Errorf("statm has %d fields", len(fields))
	}
	pages, err := strconv.ParseUint(fields[5], 10, 32)
	return pages * uint64(os.Getpagesize()), err
}

// systemCalls are those of Go's runtime that are left. Any other fails as if the kernel did not know it.
var systemCalls = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE,
	unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE,
	unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CTL,
	unix.SYS_CLOCK_GETTIME, unix.SYS_GETRANDOM, unix.SYS_GETPID, unix.SYS_GETTID,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
}

var architectures = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// confine leaves this process only the systemCalls, memory piece by piece, new threads, and signals to itself.
func confine() error {
	architecture, ok := architectures[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("no filter for %s", runtime.GOARCH)
	}
	filter := program(architecture, uint32(os.Getpid()))
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // no_new_privs is the thread's; the filter takes it to the others
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const setModeFilter = 1
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// program is the filter in the kernel's language. It looks at struct seccomp_data: the call's number, the architecture, and the first
// three arguments, of each of which the lower half comes first.
func program(architecture, pid uint32) []unix.SockFilter {
	const number, arch, first, second, secondUpper, third = 0, 4, 16, 24, 28, 32
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	// They skip what follows if the loaded value is not k, has no bit of k, or is not above k.
	compare := func(how uint16) func(k uint32, skip uint8) unix.SockFilter {
		return func(k uint32, skip uint8) unix.SockFilter {
			return unix.SockFilter{Code: unix.BPF_JMP | how | unix.BPF_K, Jf: skip, K: k}
		}
	}
	unless, unlessAny, unlessAbove := compare(unix.BPF_JEQ), compare(unix.BPF_JSET), compare(unix.BPF_JGT)
	end := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	allow, deny, full := end(unix.SECCOMP_RET_ALLOW), end(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)), end(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOMEM))
	filter := []unix.SockFilter{load(arch)}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: architecture}, end(unix.SECCOMP_RET_KILL_PROCESS), load(number))
	for _, call := range systemCalls {
		filter = append(filter, unless(call, 1), allow)
	}
	return append(filter,
		unless(unix.SYS_MMAP, 8), load(third), unlessAny(unix.PROT_WRITE, 5), load(secondUpper), unless(0, 2), load(second), unlessAbove(piece, 1), full, allow,
		unless(unix.SYS_TGKILL, 4), load(first), unless(pid, 1), allow, deny,
		unless(unix.SYS_CLONE, 4), load(first), unlessAny(unix.CLONE_THREAD, 1), allow, deny,
		deny)
}
