package logs

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// The bounds of what is written and kept.
const (
	// Burst lines with the same message may be written in Window.
	Burst  = 50
	Window = 10 * time.Second
	// RecentBytesMax bounds the last lines that are kept, lineBytesMax one of them.
	RecentBytesMax = 1 << 20
	lineBytesMax   = 16 << 10
	// messagesMax bounds how many messages are told apart; the others share one limit.
	messagesMax = 1024
)

// Log is the log of a process. Its methods may be called from any goroutine.
type Log struct {
	level  slog.LevelVar
	recent recent
	limit  limit
	logger *slog.Logger
}

// New makes a log that writes to w, as JSON or as text.
func New(w io.Writer, json bool, level slog.Level) *Log {
	l := &Log{}
	l.level.Set(level)
	out := io.MultiWriter(&l.recent, w)
	opt := &slog.HandlerOptions{Level: &l.level}
	var h slog.Handler = slog.NewTextHandler(out, opt)
	if json {
		h = slog.NewJSONHandler(out, opt)
	}
	l.limit = limit{now: time.Now, messages: map[string]*message{}, to: h}
	l.logger = slog.New(&handler{Handler: h, limit: &l.limit})
	return l
}

// Logger returns what to log with.
func (l *Log) Logger() *slog.Logger { return l.logger }

// Level returns the lowest level that is written.
func (l *Log) Level() slog.Level { return l.level.Level() }

// SetLevel changes it.
func (l *Log) SetLevel(level slog.Level) { l.level.Set(level) }

// Recent returns the last lines, oldest first, as they were written.
func (l *Log) Recent() []byte { return l.recent.bytes() }

// recent keeps the last lines.
type recent struct {
	mu    sync.Mutex
	lines [][]byte // a queue
	size  int
}

// Write takes one line: handlers of slog write each record at once.
func (r *recent) Write(line []byte) (int, error) {
	kept := line
	if len(kept) > lineBytesMax {
		kept = append(kept[:lineBytesMax-1:lineBytesMax-1], '\n')
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, append([]byte(nil), kept...))
	r.size += len(kept)
	for r.size > RecentBytesMax {
		r.size -= len(r.lines[0])
		r.lines[0] = nil
		r.lines = r.lines[1:]
	}
	return len(line), nil
}

func (r *recent) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]byte, 0, r.size)
	for _, l := range r.lines {
		out = append(out, l...)
	}
	return out
}

// message is what the limit knows of one message.
type message struct {
	since      time.Time // when its window began
	written    int
	suppressed int
}

// limit is shared by all handlers of a log.
type limit struct {
	now func() time.Time
	to  slog.Handler // for its own lines

	mu       sync.Mutex
	messages map[string]*message
	sweptAt  time.Time
}

// take tells whether a line with this text may be written.
func (l *limit) take(text string) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(now)
	m := l.messages[text]
	if m == nil {
		if len(l.messages) >= messagesMax {
			text = ""
		}
		if m = l.messages[text]; m == nil {
			m = &message{since: now}
			l.messages[text] = m
		}
	}
	if m.written >= Burst {
		m.suppressed++
		return false
	}
	m.written++
	return true
}

// sweep forgets the messages whose window is over and tells how many lines were left out. The caller holds mu.
func (l *limit) sweep(now time.Time) {
	if now.Sub(l.sweptAt) < Window/10 {
		return
	}
	l.sweptAt = now
	for text, m := range l.messages {
		if now.Sub(m.since) < Window {
			continue
		}
		delete(l.messages, text)
		if m.suppressed > 0 {
			rec := slog.NewRecord(now, slog.LevelWarn, "lines left out", 0)
			rec.AddAttrs(slog.String("message", text), slog.Int("suppressed", m.suppressed))
			_ = l.to.Handle(context.Background(), rec)
		}
	}
}

// handler applies the limit before its embedded handler writes.
type handler struct {
	slog.Handler
	limit *limit
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level > slog.LevelDebug && !h.limit.take(r.Message) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.Handler.WithAttrs(attrs), h.limit}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.Handler.WithGroup(name), h.limit}
}
