//go:build crashpoints

package effect

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// LEASEHOLD_EFFECTS names a file that gets a line for each effect, its number and kind. LEASEHOLD_CRASH is the number of the effect
// at which to die, and the side: 7:before or 7:after.
var (
	mu      sync.Mutex
	number  int
	at, dir = crash()
	record  = open()
)

func crash() (int, string) {
	text, side, _ := strings.Cut(os.Getenv("LEASEHOLD_CRASH"), ":")
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, ""
	}
	return n, side
}

func open() *os.File {
	path := os.Getenv("LEASEHOLD_EFFECTS")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	return f
}

// Before marks that an effect of that kind comes next; After is given what it returns.
func Before(kind string) int {
	mu.Lock()
	defer mu.Unlock()
	number++
	if record != nil {
		_, _ = fmt.Fprintln(record, number, kind)
	}
	die(number, "before")
	return number
}

// After marks that the effect has come.
func After(n int) {
	mu.Lock()
	defer mu.Unlock()
	die(n, "after")
}

// die kills the process as nothing else can: no deferred call runs, nothing is flushed.
func die(n int, side string) {
	if n == at && side == dir {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
