package template

import "time"

// NewRenderer returns a renderer that runs a binary as its children and waits for at most patience for them. The argument is that of a
// child that renders if it is empty.
func NewRenderer(binary, argument string, patience time.Duration) *Renderer {
	return &Renderer{Binary: binary, argument: argument, patience: patience}
}

// Gate lets tests look at whose turn it is.
type Gate = gate

// The turns.
var (
	Enter = (*gate).enter
	Leave = (*gate).leave
)

// Idle reports whether nobody has a turn or waits for one.
func Idle(g *Gate) bool { return g.running == 0 && len(g.namespaces) == 0 }

// Memory is what a child's heap may have, Piece the most of it at once, and Argument that of its command line; PerNode is how many there are.
const (
	Memory   = memory
	Piece    = piece
	Argument = childArg
	PerNode  = perNode
)

// Limit is what a child begins with, Heap what it then has of its memory.
var (
	Limit = limit
	Heap  = heap
)
