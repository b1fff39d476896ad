package placement

import "time"

// OpView is an operation as people and scripts see it: what `kiloraft op ls -o json` prints, and what the console is told.
type OpView struct {
	ID         uint64 `json:"id"`
	Kind       string `json:"kind"`
	State      string `json:"state"` // running done failed cancelled
	What       string `json:"what"`
	Why        string `json:"why"`
	Parent     uint64 `json:"parent,omitempty"`
	Shard      uint64 `json:"shard,omitempty"`
	From       uint64 `json:"from,omitempty"`
	To         uint64 `json:"to,omitempty"`
	Step       string `json:"step"`
	Done       uint64 `json:"done"`
	Total      uint64 `json:"total"`
	BytesDone  uint64 `json:"bytes_done"`
	BytesTotal uint64 `json:"bytes_total"`
	Started    string `json:"started"` // RFC 3339, as the others
	Updated    string `json:"updated"`
	Ended      string `json:"ended,omitempty"`
	LeftS      int64  `json:"left_s,omitempty"` // estimated seconds until it ends
	Cancel     bool   `json:"cancel,omitempty"` // asked to stop
	Reason     string `json:"reason,omitempty"` // why it does not advance
	Error      string `json:"error,omitempty"`
}

// Over tells whether the operation has ended.
func (v *OpView) Over() bool { return v.State != OpRunning.String() }

// View shows the operation as it is at a time.
func (o *Op) View(now time.Time) OpView {
	v := OpView{ID: o.ID, Kind: o.Kind.String(), State: o.State.String(), What: o.String(), Why: o.Why, Parent: o.Parent, Shard: uint64(o.Shard),
		From: uint64(o.From), To: uint64(o.To), Step: o.Step, Done: o.Done, Total: o.Total, BytesDone: o.BytesDone, BytesTotal: o.BytesTotal,
		Started: when(o.StartMS), Updated: when(o.UpdateMS), Ended: when(o.EndMS), Cancel: o.Cancel, Reason: o.Reason, Error: o.Error}
	if left := o.LeftMS(now.UnixMilli()); left > 0 {
		v.LeftS = max(1, left/1000)
	}
	return v
}

func when(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}
