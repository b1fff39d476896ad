// Package arch holds no code, only tests that keep the house in order: which package may import which, that every package
// says what it is for, and that the engine stays pure. It is imported by nobody.
package arch
