package node

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/kiloraft/kiloraft/scheduler"
)

// metric is one line of /metrics: what it is called, and how it is read when somebody asks.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func() float64
}

// histogram is one histogram. Its buckets are all powers of two from 2^lo to 2^hi, whether something is in them or not: a series that
// appears later would distort rates. scale turns its unit into the base unit.
type histogram struct {
	desc   *prometheus.Desc
	lo, hi int
	scale  float64
	h      *scheduler.Histogram
}

// collector reads the counters of the parts of a node. No metric has a label for the shard: there are thousands.
type collector struct {
	n    *Node
	info *prometheus.Desc
	// Of the node as such.
	always []metric
	// Of a member of a cluster, made when it has become one.
	member func(*core) ([]metric, []histogram)
}

func desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("kiloraft_"+name, help, nil, nil)
}

func counter(name, help string, read func() uint64) metric {
	return metric{desc(name, help), prometheus.CounterValue, func() float64 { return float64(read()) }}
}

func gauge(name, help string, read func() float64) metric {
	return metric{desc(name, help), prometheus.GaugeValue, read}
}

// labelled is one of several counters of a name. Labels have few values, which are known beforehand: no shard, no key, no client.
func labelled(name, help, label, value string, read func() uint64) metric {
	d := prometheus.NewDesc("kiloraft_"+name, help, nil, prometheus.Labels{label: value})
	return metric{d, prometheus.CounterValue, func() float64 { return float64(read()) }}
}

// seconds is a histogram of nanoseconds, 1 µs to 69 s; bytesHistogram goes from 64 B to 64 MiB, counts from 1 to 65536.
func seconds(name, help string, h *scheduler.Histogram) histogram {
	return histogram{desc(name, help), 10, 36, 1e-9, h}
}

func bytesHistogram(name, help string, h *scheduler.Histogram) histogram {
	return histogram{desc(name, help), 6, 26, 1, h}
}

func counts(name, help string, h *scheduler.Histogram) histogram {
	return histogram{desc(name, help), 0, 16, 1, h}
}

func bool01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// newRegistry has everything that /metrics tells.
func newRegistry(n *Node) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(newCollector(n), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

func newCollector(n *Node) *collector {
	return &collector{
		n:      n,
		info:   prometheus.NewDesc("kiloraft_build_info", "Version of the program.", []string{"version"}, nil),
		always: append(append(append(transportMetrics(n), logMetrics(n)...), stateMetrics(n)...), processMetrics(n)...),
		member: memberMetrics,
	}
}

// Describe implements prometheus.Collector. It describes nothing: what is there depends on whether the node is a member.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(c.info, prometheus.GaugeValue, 1, Version())
	send(ch, c.always)
	c.peers(ch)
	if r := c.n.redis; r != nil {
		r.collect(ch)
	}
	if k := c.n.core.Load(); k != nil {
		metrics, histograms := c.member(k)
		send(ch, metrics)
		for _, h := range histograms {
			ch <- h.metric()
		}
	}
}

func send(ch chan<- prometheus.Metric, list []metric) {
	for _, m := range list {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.read())
	}
}

// metric turns the buckets by powers of two into cumulative ones.
func (h histogram) metric() prometheus.Metric {
	count, sum := h.h.Count()
	buckets := map[float64]uint64{}
	at, total := h.lo, uint64(0)
	until := func(below uint64) {
		for ; at <= h.hi && uint64(1)<<at < below; at++ {
			buckets[float64(uint64(1)<<at)*h.scale] = total
		}
	}
	h.h.Buckets(func(below, n uint64) {
		until(below)
		total += n
	})
	until(1 << 63)
	// What was observed between reading the buckets and the sum must not make them contradict.
	return prometheus.MustNewConstHistogram(h.desc, max(count, total), float64(sum)*h.scale, buckets)
}

func transportMetrics(n *Node) []metric {
	conns := func(f func(client bool, outbox int) float64) func() float64 {
		return func() float64 {
			sum := 0.0
			for _, s := range n.tr.Conns() {
				sum += f(s.Client, s.OutboxBytes)
			}
			return sum
		}
	}
	m := n.tr.Metrics()
	return []metric{
		counter("net_frames_sent_total", "Frames written to peers and clients.", m.FramesOut.Load),
		counter("net_frames_received_total", "Frames read from peers and clients.", m.FramesIn.Load),
		counter("net_sent_bytes_total", "Bytes of frames written.", m.BytesOut.Load),
		counter("net_received_bytes_total", "Bytes of frames read.", m.BytesIn.Load),
		counter("net_raft_dropped_total", "Batches of raft messages that were dropped because a peer's outbox was full or gone.", m.RaftDropped.Load),
		counter("net_calls_total", "Requests sent to peers.", m.Calls.Load),
		counter("net_requests_total", "Requests served.", m.Requests.Load),
		counter("net_sessions_total", "Sessions begun with peers and clients.", m.Sessions.Load),
		counter("net_reconnects_total", "Sessions begun with a peer that there was one with before.", m.Reconnects.Load),
		counter("net_slow_total", "Sessions ended because the other side did not take what was sent.", m.Slow.Load),
		counter("net_silent_total", "Sessions ended because nothing came any more.", m.Silent.Load),
		counter("net_dials_total", "Connections dialled.", m.Dials.Load),
		counter("net_dial_errors_total", "Dials that failed.", m.DialErrors.Load),
		counter("net_refusals_total", "Handshakes of others that were refused.", m.Refusals.Load),
		counter("net_denied_total", "Handshakes refused for wrong or missing credentials.", m.Denied.Load),
		counter("net_evicted_total", "Handshakes given up because there were too many.", m.Evicted.Load),
		counter("access_denied_total", "Wrong credentials and requests that somebody may not make, at all doors of the node.", n.sec.denied.Load),
		counter("net_malformed_total", "Malformed frames and handshakes.", m.Malformed.Load),
		gauge("net_peer_connections", "Connections with peers: one each.", conns(func(client bool, _ int) float64 { return bool01(!client) })),
		gauge("net_client_connections", "Connections of clients.", conns(func(client bool, _ int) float64 { return bool01(client) })),
		gauge("net_send_queue_bytes", "Bytes for peers and clients that wait to be sent.", conns(func(_ bool, outbox int) float64 { return float64(outbox) })),
	}
}

func logMetrics(n *Node) []metric {
	m := n.rlog.Metrics()
	return []metric{
		counter("log_syncs_total", "Writes with fdatasync of the raft log.", m.Syncs.Load),
		counter("log_written_bytes_total", "Bytes written to the raft log.", m.Bytes.Load),
		counter("log_entries_total", "Entries appended to the raft log.", m.Entries.Load),
	}
}

func stateMetrics(n *Node) []metric {
	return []metric{
		gauge("state_file_bytes", "Size of the state file.", func() float64 { return float64(n.state.Stats().FileBytes) }),
		gauge("state_used_bytes", "Used part of the state file.", func() float64 { return float64(n.state.Stats().UsedBytes) }),
		counter("state_writes_total", "Transactions committed to the state.", func() uint64 { return n.state.Stats().Writes }),
		counter("state_reads_total", "Read jobs that missed the overlays.", func() uint64 { return n.state.Stats().Jobs }),
		gauge("state_garbage_ranges", "Ranges that wait to be removed.", func() float64 { return float64(n.state.Stats().GarbageRanges) }),
	}
}

// peers sends what there is per peer: as many series as there are nodes.
func (c *collector) peers(ch chan<- prometheus.Metric) {
	streams := 0
	for _, s := range c.n.tr.Conns() {
		streams += s.Streams
		if !s.Client && s.RTT > 0 {
			ch <- prometheus.MustNewConstMetric(rttDesc, prometheus.GaugeValue, s.RTT.Seconds(), strconv.FormatUint(uint64(s.Node), 10))
		}
	}
	ch <- prometheus.MustNewConstMetric(streamsDesc, prometheus.GaugeValue, float64(streams))
}

var (
	rttDesc     = prometheus.NewDesc("kiloraft_net_rtt_seconds", "Round trip to a peer, as TCP has measured and smoothed it (Linux).", []string{"peer"}, nil)
	streamsDesc = desc("net_streams", "Streams on all connections.")
)

// processMetrics are of the machine and what was configured.
func processMetrics(n *Node) []metric {
	return []metric{
		gauge("disk_free_bytes", "Space that is left on the file system of the data directory.", func() float64 { free, _ := diskSpace(n.cfg.DataDir); return float64(free) }),
		gauge("disk_size_bytes", "Size of the file system of the data directory.", func() float64 { _, size := diskSpace(n.cfg.DataDir); return float64(size) }),
		gauge("start_time_seconds", "When the node was started, in Unix seconds.", func() float64 { return float64(n.began.UnixMilli()) / 1e3 }),
		gauge("tls_certificate_expiry_seconds", "When the certificate of this node expires, in Unix seconds; 0: there is none.", func() float64 { return certExpiry(n.sec) }),
	}
}

// certExpiry returns when the certificate that this node shows to others expires, in Unix seconds.
func certExpiry(s *security) float64 {
	if !s.on() {
		return 0
	}
	return float64(s.files.Leaf().NotAfter.Unix())
}
