//go:build !cgo

package template_test

const cgo = false
