// Package state keeps what is applied: overlays in memory, a bbolt file behind them.
package state
