// Package effect marks the places at which Leasehold changes something outside of its memory: a request to Vault leaves, its reply
// comes in, the store commits, a Mount is answered. In a test's build (tag crashpoints) the process can be made to die right
// before or right after any of them; else the marks cost nothing.
package effect
