package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
)

// machines are the architectures that images are made for, as Go names them.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// program returns the entry point of the image for an architecture. One that could not run there is refused here, and not
// on the first node that tries: in an image from scratch there is no dynamic linker.
func (e entries) program(entrypoint, arch string) ([]byte, error) {
	entry, ok := e.find(entrypoint)
	if !ok {
		return nil, fmt.Errorf("-entrypoint %s is not a -file of the image", entrypoint)
	}
	content, err := entry.read(arch)
	if err != nil {
		return nil, fmt.Errorf("reading the entry point: %w", err)
	}
	if err := checkStatic(content, arch); err != nil {
		return nil, fmt.Errorf("entry point %s: %w", entrypoint, err)
	}
	return content, nil
}

func checkStatic(content []byte, arch string) error {
	file, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("not a program for linux: %w", err)
	}
	if file.Machine != machines[arch] {
		return fmt.Errorf("built for %s, not for %s", file.Machine, arch)
	}
	if slices.ContainsFunc(file.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return errors.New("not static: build it with CGO_ENABLED=0")
	}
	return nil
}
