// Command child does nothing but render: the children of tests whose own binary, with the race detector, does not fit into their limits.
package main

import _ "github.com/leasehold-csi/leasehold/internal/template"

func main() {}
