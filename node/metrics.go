package node

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kiloraft/kiloraft/scheduler"
)

// metric is one line of /metrics: what it is called, and how it is read when somebody asks.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func() float64
}

// histogram is one histogram; scale turns its unit into the base unit.
type histogram struct {
	desc  *prometheus.Desc
	scale float64
	h     *scheduler.Histogram
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

func counter(name, help string, read func() uint64) metric {
	return metric{prometheus.NewDesc("kiloraft_"+name, help, nil, nil), prometheus.CounterValue, func() float64 { return float64(read()) }}
}

func gauge(name, help string, read func() float64) metric {
	return metric{prometheus.NewDesc("kiloraft_"+name, help, nil, nil), prometheus.GaugeValue, read}
}

func newCollector(n *Node) *collector {
	return &collector{
		n:      n,
		info:   prometheus.NewDesc("kiloraft_build_info", "Version of the program.", []string{"version"}, nil),
		always: append(append(transportMetrics(n), logMetrics(n)...), stateMetrics(n)...),
		member: memberMetrics,
	}
}

// Describe implements prometheus.Collector. It describes nothing: what is there depends on whether the node is a member.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(c.info, prometheus.GaugeValue, 1, Version())
	send(ch, c.always)
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
	total := uint64(0)
	h.h.Buckets(func(below, n uint64) {
		total += n
		buckets[float64(below)*h.scale] = total
	})
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
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
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
		counter("net_sessions_total", "Sessions begun, so reconnects too.", m.Sessions.Load),
		counter("net_dials_total", "Connections dialled.", m.Dials.Load),
		counter("net_dial_errors_total", "Dials that failed.", m.DialErrors.Load),
		counter("net_refusals_total", "Handshakes of others that were refused.", m.Refusals.Load),
		counter("net_malformed_total", "Malformed frames and handshakes.", m.Malformed.Load),
		gauge("net_peer_connections", "Connections with peers: one each.", conns(func(client bool, _ int) float64 { return is(!client) })),
		gauge("net_client_connections", "Connections of clients.", conns(func(client bool, _ int) float64 { return is(client) })),
		gauge("net_send_queue_bytes", "Raft bytes that wait to be sent.", conns(func(_ bool, outbox int) float64 { return float64(outbox) })),
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

func memberMetrics(c *core) ([]metric, []histogram) {
	m := c.sched.Metrics()
	list := []metric{
		gauge("shards_replicas", "Replicas on this node.", func() float64 { return float64(c.sched.Replicas()) }),
		gauge("raft_leaders", "Shards that this node leads.", func() float64 { return float64(c.view.led(c.node)) }),
		gauge("disk_full", "1 while log or state find no space: writes to the shards that this node leads are refused.", func() float64 {
			if c.sched.DiskFull() {
				return 1
			}
			return 0
		}),
		gauge("peers_up", "Other nodes that are alive.", func() float64 { return float64(m.PeersUp.Load()) }),
		counter("raft_elections_total", "Campaigns for a vote.", m.Elections.Load),
		counter("raft_leaders_won_total", "Elections won.", m.LeadersWon.Load),
		counter("raft_proposals_total", "Writes taken.", m.Proposals.Load),
		counter("raft_proposals_refused_total", "Writes refused.", m.ProposalsRefused.Load),
		counter("raft_entries_total", "Entries appended, own and peers'.", m.Entries.Load),
		counter("raft_applied_total", "Entries applied.", m.Applied.Load),
		counter("raft_reads_lease_total", "Reads served under a lease.", m.ReadsLease.Load),
		counter("raft_reads_index_total", "Reads that asked a quorum.", m.ReadsIndex.Load),
		counter("raft_reads_cold_total", "Reads that went to the state.", m.ReadsCold.Load),
		counter("raft_snapshots_sent_total", "Snapshots sent.", m.SnapshotsSent.Load),
		counter("raft_snapshots_received_total", "Snapshots installed.", m.SnapshotsReceived.Load),
		counter("raft_snapshots_failed_total", "Snapshots given up.", m.SnapshotsFailed.Load),
		counter("sched_turns_total", "Turns of lanes.", m.Turns.Load),
		counter("sched_events_total", "Events fed to engines.", m.Events.Load),
		counter("sched_commands_total", "Commands that engines gave.", m.Commands.Load),
		counter("sched_log_batches_total", "Batches that lanes handed to the raft log.", m.LogBatches.Load),
		counter("sched_log_syncs_total", "Syncs of the raft log.", m.LogSyncs.Load),
		counter("sched_log_sync_shards_total", "Shards with something in a sync, summed over syncs.", m.LogSyncShards.Load),
		counter("sched_frames_total", "Raft frames handed to the network.", m.Frames.Load),
		counter("sched_frame_bytes_total", "Bytes in them.", m.FrameBytes.Load),
		counter("sched_frame_messages_total", "Messages in them.", m.FrameMessages.Load),
		counter("sched_frames_dropped_total", "Raft frames that the network did not take.", m.FramesDropped.Load),
		counter("sched_messages_received_total", "Messages received.", m.MessagesReceived.Load),
		counter("sched_messages_dropped_total", "Messages received for no replica of this node, or malformed.", m.MessagesDropped.Load),
		counter("sched_heartbeats_total", "Node heartbeats sent.", m.HeartbeatsSent.Load),
		counter("sched_heartbeat_messages_total", "Heartbeats of awake shards in them.", m.HeartbeatMessages.Load),
		counter("sched_checkpoints_total", "Shards written to the state.", m.Checkpoints.Load),
		counter("sched_checkpoint_transactions_total", "Transactions of checkpoints.", m.CheckpointTx.Load),
		counter("sched_checkpoint_bytes_total", "Bytes of overlays written.", m.CheckpointBytes.Load),
		counter("sched_stalls_total", "Times that the disk stalled so long that leaderships were given up.", m.Stalls.Load),
		gauge("sched_inflight_bytes", "Bytes of writes taken and not answered.", func() float64 { return float64(m.InflightBytes.Load()) }),
	}
	seconds := func(name, help string, h *scheduler.Histogram) histogram {
		return histogram{prometheus.NewDesc("kiloraft_"+name, help, nil, nil), 1 / math.Pow10(9), h}
	}
	return list, []histogram{
		seconds("disk_fsync_seconds", "A write with fdatasync of the raft log.", &m.SyncLatency),
		seconds("raft_commit_latency_seconds", "From taking a write to its answer.", &m.CommitLatency),
		seconds("sched_turn_seconds", "A turn of a lane.", &m.TurnTime),
	}
}
