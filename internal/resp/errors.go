package resp

import (
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/shard"
)

// The texts of errors, as in Redis.
const (
	errSyntax      = "ERR syntax error"
	errNotInteger  = "ERR value is not an integer or out of range"
	errNotFloat    = "ERR value is not a valid float"
	errOverflow    = "ERR increment or decrement would overflow"
	errNaN         = "ERR increment would produce NaN or Infinity"
	errNoKey       = "ERR no such key"
	errTooLong     = "ERR string exceeds maximum allowed size (proto-max-bulk-len)"
	errOffset      = "ERR offset is out of range"
	errCursor      = "ERR invalid cursor"
	errCrossSlot   = "CROSSSLOT Keys in request don't hash to the same slot"
	errNoCluster   = "ERR This instance has cluster support disabled"
	errExecAbort   = "EXECABORT Transaction discarded because of previous errors."
	errNotInMulti  = "ERR Command not allowed inside a transaction"
	errWrongPass   = "WRONGPASS invalid username-password pair or user is disabled."
	errNoPassword  = "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"
	errManyClients = "ERR max number of clients reached"
)

func errArity(name string) string {
	return "ERR wrong number of arguments for '" + name + "' command"
}

func errExpire(name string) string { return "ERR invalid expire time in '" + name + "' command" }

// errReplies: making a reply would take more memory than a connection may have.
var errReplies = errors.New("the replies of this connection would take too much memory: ask for less at a time")

// errorText turns an error of the cluster into a reply. A client library retries some codes by itself (TRYAGAIN, CLUSTERDOWN): only what
// had no effect may have them.
func errorText(err error) string {
	switch {
	case errors.Is(err, shard.ErrAmbiguous): // first: the cause is joined to it
		return "UNKNOWNRESULT the write may have been applied or not: " + err.Error()
	case errors.Is(err, shard.ErrCrossShard):
		return errCrossSlot
	case errors.Is(err, shard.ErrNotInteger):
		return errNotInteger
	case errors.Is(err, shard.ErrNotInitialized):
		return "CLUSTERDOWN The cluster is down: this node belongs to no cluster yet"
	case errors.Is(err, shard.ErrOverloaded):
		return "BUSY the cluster is overloaded, retry later"
	case errors.Is(err, shard.ErrTooLarge), errors.Is(err, shard.ErrInvalid):
		return "ERR " + err.Error()
	case errors.Is(err, shard.ErrUnavailable), errors.Is(err, shard.ErrNotLeader), errors.Is(err, shard.ErrShardMoved), errors.Is(err, shard.ErrShardNotFound):
		return "CLUSTERDOWN The cluster is down: " + err.Error()
	}
	return fmt.Sprintf("ERR %v", err)
}

func isConditionFailed(err error) bool { return errors.Is(err, shard.ErrConditionFailed) }
