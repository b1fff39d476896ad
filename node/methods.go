package node

import (
	"fmt"
	"strings"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// needs says what each method takes. A method that is not here is for nodes only; a test asks for an entry for each.
var needs = map[api.Method]auth.Need{
	api.MethodRead:       auth.NeedRead,
	api.MethodScan:       auth.NeedRead,
	api.MethodRouteRead:  auth.NeedRead,
	api.MethodRouteScan:  auth.NeedRead,
	api.MethodWrite:      auth.NeedWrite,
	api.MethodRouteWrite: auth.NeedWrite,

	api.MethodMap:      auth.NeedUser,
	api.MethodNodeInfo: auth.NeedUser,
	api.MethodReplicas: auth.NeedUser,
	api.MethodNodes:    auth.NeedUser,
	api.MethodShards:   auth.NeedUser,
	api.MethodOps:      auth.NeedUser,
	api.MethodPlan:     auth.NeedUser,
	api.MethodStatus:   auth.NeedUser,
	api.MethodPassword: auth.NeedUser,
	api.MethodWhoAmI:   auth.NeedUser,

	api.MethodChecksum: auth.NeedAdmin,
	api.MethodInspect:  auth.NeedAdmin, // logs and profiles
	api.MethodCut:      auth.NeedAdmin, // the content of a whole shard, whatever its keys
	api.MethodTransfer: auth.NeedAdmin,
	api.MethodInit:     auth.NeedAdmin,
	api.MethodOpStart:  auth.NeedAdmin,
	api.MethodOpCancel: auth.NeedAdmin,
	api.MethodNodeSet:  auth.NeedAdmin,
	api.MethodUsers:    auth.NeedAdmin,
	api.MethodUserSet:  auth.NeedAdmin,

	api.MethodReserve: auth.NeedNode,
	api.MethodStart:   auth.NeedNode,
	api.MethodJoin:    auth.NeedNode,
	api.MethodCreate:  auth.NeedNode,
	methodHello:       auth.NeedNode,
	methodReserve:     auth.NeedNode,
	methodStart:       auth.NeedNode,
	methodSync:        auth.NeedNode,
	methodDrive:       auth.NeedNode,
	methodLeads:       auth.NeedNode,
	methodChange:      auth.NeedNode,
	methodRemove:      auth.NeedNode,
	methodEvacuate:    auth.NeedNode,
	methodLearn:       auth.NeedNode,
	methodSplit:       auth.NeedNode,
	methodLoads:       auth.NeedNode,
	methodSample:      auth.NeedNode,
	methodSamples:     auth.NeedNode,
	methodRates:       auth.NeedNode,
	methodMerge:       auth.NeedNode,
}

// needByNumber is needs for the data path.
var needByNumber = func() (t [256]auth.Need) {
	for m, n := range needs {
		t[m] = n
	}
	return t
}()

func needOf(m api.Method) auth.Need {
	if int(m) < len(needByNumber) {
		return needByNumber[m]
	}
	return auth.NeedUnknown
}

// auditedMethod tells whether the audit log records a method: all that change something and need more than keys.
func auditedMethod(m api.Method) bool {
	return needOf(m) == auth.NeedAdmin && m != api.MethodUsers && m != api.MethodChecksum && m != api.MethodInspect && m != api.MethodCut || m == api.MethodPassword
}

// admitKeys checks the keys of a request. The meta shard, which holds the hashes of passwords among other things, is for nodes alone.
func (s *security) admitKeys(q *incoming, a *auth.Access, need auth.Need) error {
	switch q.method {
	case api.MethodRead, api.MethodWrite, api.MethodScan:
		if id, err := shardOf(q.body); err != nil || id == shard.MetaShardID {
			if err == nil {
				err = s.deny(q, auth.NeedNode)
			}
			return err
		}
	}
	if a.All(need) {
		return nil
	}
	ok, err := keysAllowed(q, a)
	if err == nil && !ok {
		s.denied.Add(1)
		err = denied("user %s has no role %s for all of these keys", q.id, need)
	}
	return err
}

// keysAllowed looks at every key and range that a request names.
func keysAllowed(q *incoming, a *auth.Access) (bool, error) {
	switch q.method {
	case api.MethodRead, api.MethodRouteRead:
		var r shard.Read
		if err := shard.DecodeRead(q.body, &r); err != nil {
			return false, err
		}
		for _, k := range r.Keys {
			if !a.Key(auth.NeedRead, k) {
				return false, nil
			}
		}
		return true, nil
	case api.MethodScan, api.MethodRouteScan:
		var r shard.Scan
		if err := shard.DecodeScan(q.body, &r); err != nil {
			return false, err
		}
		return a.Range(auth.NeedRead, r.Start, r.End), nil
	case api.MethodWrite, api.MethodRouteWrite:
		var w shard.Write
		if err := shard.DecodeWrite(q.body, &w); err != nil {
			return false, err
		}
		return writeAllowed(&w, a), nil
	}
	return false, nil
}

func writeAllowed(w *shard.Write, a *auth.Access) bool {
	for i := range w.Conditions {
		if !a.Key(auth.NeedRead, w.Conditions[i].Key) {
			return false
		}
	}
	for i := range w.Ops {
		o := &w.Ops[i]
		if o.Kind == shard.OpDeleteRange {
			if !a.Range(auth.NeedWrite, o.Key, o.End) {
				return false
			}
		} else if !a.Key(auth.NeedWrite, o.Key) {
			return false
		}
	}
	return true
}

// describeAction says for the audit log what somebody wants who is, or should be, an administrator. It holds no password.
func describeAction(q *incoming) string {
	switch q.method {
	case api.MethodInit:
		var r api.InitRequest
		if api.Decode(q.body, &r) == nil {
			return fmt.Sprintf("cluster init, %d shards", r.Shards)
		}
	case api.MethodTransfer:
		var r api.TransferRequest
		if api.Decode(q.body, &r) == nil {
			return fmt.Sprintf("transfer shard %d to %s", r.Shard, nodeName(r.To))
		}
	case api.MethodOpStart:
		var r api.OpRequest
		if api.Decode(q.body, &r) == nil {
			if o, err := placement.DecodeOp(r.Op); err == nil {
				return o.String()
			}
		}
	case api.MethodOpCancel:
		var r api.OpsRequest
		if api.Decode(q.body, &r) == nil {
			return fmt.Sprintf("cancel operation %d", r.ID)
		}
	case api.MethodNodeSet:
		var r api.NodeSetRequest
		if api.Decode(q.body, &r) == nil {
			return describeNodeSet(&r)
		}
	case api.MethodUserSet:
		var r api.UserRequest
		if api.Decode(q.body, &r) == nil {
			return describeUserSet(&r)
		}
	case api.MethodPassword:
		return "change own password"
	case api.MethodUsers:
		return "list users"
	case api.MethodInspect:
		return "inspect a node"
	case api.MethodCut:
		return "read a whole shard"
	case api.MethodChecksum:
		return "checksum a shard"
	}
	return fmt.Sprintf("malformed request, method %d", q.method)
}

func describeNodeSet(r *api.NodeSetRequest) string {
	switch {
	case r.Action == api.NodeUndrain:
		return "undrain " + nodeName(r.Node)
	case r.Action == api.NodeRemove && r.Force:
		return "remove " + nodeName(r.Node) + " by force"
	case r.Action == api.NodeRemove:
		return "remove " + nodeName(r.Node)
	}
	return fmt.Sprintf("unknown action %d on %s", r.Action, nodeName(r.Node))
}

func describeUserSet(r *api.UserRequest) string {
	var b strings.Builder
	verbs := map[api.UserAction]string{api.UserAdd: "add", api.UserPassword: "set password of", api.UserGrant: "change roles of", api.UserRemove: "remove"}
	verb := verbs[r.Action]
	if verb == "" {
		verb = "do something unknown with"
	}
	fmt.Fprintf(&b, "%s user %q", verb, r.Name)
	for _, g := range r.Grants {
		fmt.Fprintf(&b, " %s:%q", g.Role, g.Prefix)
	}
	return b.String()
}
