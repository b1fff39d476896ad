package node

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/common/expfmt"
)

// metricsPage answers /metrics. One page is made at a time, for all who have asked for it before it was begun, and not more often than
// metricsRest allows: however many ask, it takes a tenth of a core.
type metricsPage struct {
	write func(io.Writer) error

	mu     sync.Mutex
	making bool         // a goroutine makes pages
	next   *metricsText // for those who have asked since the last one was begun; nil: nobody has
}

// metricsText is one page, once done is closed.
type metricsText struct {
	done chan struct{}
	text []byte
	err  error
}

func newMetricsPage(write func(io.Writer) error) *metricsPage { return &metricsPage{write: write} }

// ServeHTTP implements http.Handler.
func (p *metricsPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := p.ask()
	select {
	case <-t.done:
	case <-r.Context().Done(): // the client is gone
		return
	}
	if t.err != nil {
		http.Error(w, t.err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	_, _ = w.Write(t.text)
}

// ask returns a page that was not begun yet.
func (p *metricsPage) ask() *metricsText {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		p.next = &metricsText{done: make(chan struct{})}
	}
	if !p.making {
		p.making = true
		go p.make() // ends when nobody asks any more
	}
	return p.next
}

// make makes pages until nobody asks.
func (p *metricsPage) make() {
	for {
		p.mu.Lock()
		t := p.next
		p.next = nil
		p.making = t != nil
		p.mu.Unlock()
		if t == nil {
			return
		}
		began := time.Now()
		var b bytes.Buffer
		t.err = p.write(&b)
		t.text = b.Bytes()
		close(t.done)
		time.Sleep(metricsRest(time.Since(began)))
	}
}

// metricsRest is how long no page is made after one that took so long.
func metricsRest(took time.Duration) time.Duration { return min(9*took, time.Second) }
