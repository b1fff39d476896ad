// Package console holds the web console: a page, its style sheet and its modules, embedded in the binary, for package node to serve at `/`.
//
// Guarantees: the page needs nothing from anywhere else (no build step, no network but the node that served it); it is served with
// a Content-Security-Policy that allows files of this package only, no inline script or style, and no evaluation of text. Whatever the
// modules show of a cluster goes into the page as text, never as markup. Everything that it shows and does goes through the node's JSON
// endpoints, which check who asks: the files themselves hold no secrets.
//
// static/vendor holds uPlot (MIT, its licence is beside it), which draws the charts.
//
// It imports the standard library only.
package console
