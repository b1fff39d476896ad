package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/scheduler"
)

// surveyMax bounds how long a scrape waits for the lanes.
const surveyMax = 2 * time.Second

// memberMetrics are those of a member of a cluster.
func memberMetrics(c *core) ([]metric, []histogram) {
	m := c.sched.Metrics()
	list := append(raftMetrics(c, m), schedMetrics(c, m)...)
	return append(append(list, shardMetrics(c, m)...), surveyMetrics(c)...), []histogram{
		seconds("disk_fsync_seconds", "A write with fdatasync of the raft log.", &m.SyncLatency),
		bytesHistogram("disk_batch_bytes", "Bytes of the raft log that one fdatasync made durable.", &m.SyncBytes),
		seconds("raft_commit_latency_seconds", "From when a write came to the node that leads its shard to its answer.", &m.CommitLatency),
		seconds("raft_snapshot_send_seconds", "Sending of a snapshot that was sent completely.", &m.SnapshotSend),
		seconds("raft_snapshot_receive_seconds", "Receiving of a snapshot that was received completely.", &m.SnapshotReceive),
		seconds("sched_turn_seconds", "A turn of a lane.", &m.TurnTime),
		counts("sched_batch_requests", "Requests of clients that a turn of a lane took, if any.", &m.TurnRequests),
		counts("sched_batch_commands", "Commands that the engines gave in a turn of a lane, if any.", &m.TurnCommands),
	}
}

func raftMetrics(c *core, m *scheduler.Metrics) []metric {
	return []metric{
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
		counter("raft_snapshots_received_total", "Snapshots received.", m.SnapshotsReceived.Load),
		counter("raft_snapshots_failed_total", "Snapshots given up.", m.SnapshotsFailed.Load),
		gauge("peers", "Other nodes of the cluster, removed ones not counted.", func() float64 {
			n := 0
			for _, rec := range c.view.nodeList() {
				if rec.ID != c.node && rec.State != placement.NodeRemoved {
					n++
				}
			}
			return float64(n)
		}),
		gauge("peers_up", "Other nodes that are alive.", func() float64 { return float64(m.PeersUp.Load()) }),
		gauge("clock_skew_seconds", "Wall clock of this node less the median of the living peers', to a heartbeat's time on the wire; 0 without peers.", func() float64 {
			return c.sched.ClockSkew().Seconds()
		}),
	}
}

func schedMetrics(c *core, m *scheduler.Metrics) []metric {
	return []metric{
		gauge("sched_lanes", "Lanes of the scheduler.", func() float64 { return float64(c.sched.LaneCount()) }),
		gauge("sched_queue_depth", "Requests that wait for a lane.", func() float64 { return float64(c.sched.Queued()) }),
		{desc: desc("sched_busy_seconds_total", "Time that lanes were in a turn: its rate, divided by the lanes, is how busy they are."),
			kind: prometheus.CounterValue, read: func() float64 { _, sum := m.TurnTime.Count(); return float64(sum) / 1e9 }},
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
		counter("disk_stalls_total", "Times that the disk stalled so long that leaderships were given up.", m.Stalls.Load),
		gauge("sched_inflight", "Writes taken and not answered.", func() float64 { return float64(m.Inflight.Load()) }),
		gauge("sched_inflight_max", "Writes that may be taken and not answered; more are refused as overloaded.", func() float64 { return float64(c.sched.InflightLimit()) }),
		gauge("sched_inflight_bytes", "Bytes of writes taken and not answered.", func() float64 { return float64(m.InflightBytes.Load()) }),
		gauge("disk_full", "1 while log or state find no space: writes to the shards that this node leads are refused.", func() float64 {
			return bool01(c.sched.DiskFull())
		}),
	}
}

func shardMetrics(c *core, m *scheduler.Metrics) []metric {
	list := []metric{
		gauge("shards_replicas", "Replicas on this node.", func() float64 { return float64(c.sched.Replicas()) }),
		counter("shards_splits_total", "Splits that replicas here have applied.", m.Splits.Load),
		counter("shards_merges_total", "Merges that replicas here have applied.", m.Merges.Load),
		counter("shards_stopped_total", "Replicas that met an entry which this version does not understand.", m.ReplicasStopped.Load),
	}
	for r := range scheduler.Refusal(scheduler.RefusalKinds) {
		list = append(list, labelled("requests_refused_total", "Requests to shards here that were answered with an error. Reason moved: the client's descriptor was stale.",
			"reason", r.String(), m.Refusals[r].Load))
	}
	for s := range scheduler.Stage(scheduler.Stages) {
		list = append(list, labelled("slow_operations_total", "Reads and writes that took log.slow or longer, by the stage that took longest.",
			"stage", s.String(), m.Slow[s].Load))
	}
	for _, k := range placement.OpKinds() {
		list = append(list, labelled("operations_done_total", "Operations that this node has driven to their end, by kind.", "kind", k.String(), c.driver.done[k].Load))
	}
	return append(list, counter("operations_failed_total", "Operations that this node has driven and that failed.", c.driver.failed.Load))
}

// surveyMetrics ask the lanes once for all. What they do not answer in time is missing from the scrape.
func surveyMetrics(c *core) []metric {
	ctx, cancel := context.WithTimeout(c.n.ctx, surveyMax)
	defer cancel()
	s, err := c.sched.Survey(ctx)
	if err != nil {
		return nil
	}
	number := func(name, help string, v int) metric {
		return gauge(name, help, func() float64 { return float64(v) })
	}
	return []metric{
		number("raft_leaders", "Shards that this node leads.", s.Leaders),
		number("raft_leaderless", "Replicas here that know no leader of their shard.", s.Leaderless),
		number("raft_awake", "Replicas here that do not sleep.", s.Awake),
		number("raft_writes_waiting", "Writes that wait to be applied.", s.Waiting),
		number("raft_apply_lag_entries", "Entries that are committed and not applied, over all replicas here.", int(s.LagEntries)),
		number("raft_apply_lag_entries_max", "Of the replica that lags most.", int(s.LagEntriesMax)),
		number("shards_uninitialised", "Replicas that wait for their first snapshot.", s.Uninitialised),
		number("shards_under_replicated", "Shards that this node leads with a voter on a node that is down.", s.UnderReplicated),
	}
}
