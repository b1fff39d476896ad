package shard

import "time"

// The bounds of a shard. All replicas of a shard must agree on those that Apply uses (SessionHorizon, SessionWindow,
// SessionsMax, SessionRowsMax, DeleteRangeMax): they change only with the cluster version (rule Cluster8).
const (
	// KeyBytesMax bounds a key; a key has at least one byte.
	KeyBytesMax = 4 << 10
	// ValueBytesMax bounds a value.
	ValueBytesMax = 8 << 20
	// WriteBytesMax bounds an encoded Write, and by that an entry.
	WriteBytesMax = 16 << 20
	// WriteOpsMax bounds the operations and, separately, the conditions of one Write.
	WriteOpsMax = 4096
	// WriteAddsMax bounds the add operations of one Write: each leaves a result in the de-duplication table.
	WriteAddsMax = 64
	// ReadKeysMax bounds the keys of one Read.
	ReadKeysMax = 1024
	// AnswerBytesMax bounds the items of the answer to a Read or a Scan; the first item always fits.
	AnswerBytesMax = 4 << 20
	// ScanLimitMax bounds the items of a page.
	ScanLimitMax = 10_000
	// DeleteRangeMax bounds the keys that one delete-range removes (rule Cluster4).
	DeleteRangeMax = 1024
	// DescriptorReplicasMax bounds the replicas of a descriptor.
	DescriptorReplicasMax = 64
	// mergeRetry is how soon to come again for a key of a shard that is being merged.
	mergeRetry = 20 * time.Millisecond
	// SplitChildrenMax bounds the children of one split.
	SplitChildrenMax = 4096
	// MovedDescriptorsMax bounds the descriptors of one ErrShardMoved answer.
	MovedDescriptorsMax = 64

	// SessionHorizon is H of rule Cluster2: a shard forgets sessions issued earlier than its time minus H.
	SessionHorizon = 30 * time.Minute
	// SessionWindow is the most by which a sequence may exceed the lowest unanswered one.
	SessionWindow = 16384
	// SessionsMax and SessionRowsMax bound the de-duplication table of a shard; over them it forgets the oldest session.
	SessionsMax    = 16384
	SessionRowsMax = 131072
)
