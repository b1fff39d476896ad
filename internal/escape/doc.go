// Package escape is how keys and values look to people: what a terminal or a JSON document shows of them has unprintable
// bytes as \xNN and the backslash as \\, and keys that people type are read back the same way.
//
// Guarantees: Unescape(Escape(b)) == b for all b; Escape never yields a control character or invalid UTF-8.
// It imports the standard library only.
package escape
