package simrt

import (
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// ErrCrashed is what Start returns when the node crashed again while it recovered.
var ErrCrashed = errors.New("the node crashed while it started")

// task is work that takes simulated time: it runs as a coroutine, so that turns and other tasks happen between its steps. Only one
// thing ever runs at a time.
type task struct {
	n    *Node
	life uint64
	next func() (time.Duration, bool)
	stop func()
	// yield is good while the task runs.
	yield func(time.Duration) bool
}

// spawn runs f as a task of this life of the node.
func (n *Node) spawn(d time.Duration, f func()) {
	n.after(d, func() {
		t := &task{n: n, life: n.life}
		t.next, t.stop = iter.Pull(func(yield func(time.Duration) bool) {
			t.yield = yield
			f()
		})
		n.tasks = append(n.tasks, t)
		t.run()
	})
}

// run lets a task go on until it sleeps or ends.
func (t *task) run() {
	c := t.n.c
	outer := c.running
	c.running = t
	d, more := t.next()
	c.running = outer
	if more {
		t.n.after(d, t.run)
	} else {
		t.n.forget(t)
	}
	t.n.pump()
}

func (n *Node) forget(t *task) {
	if i := slices.Index(n.tasks, t); i >= 0 {
		n.tasks = slices.Delete(n.tasks, i, i+1)
	}
}

// sleep lets time pass for the task that runs. False: its node has died meanwhile.
func (c *Cluster) sleep(d time.Duration) bool {
	t := c.running
	if t == nil || !t.n.Up || t.n.life != t.life {
		return false
	}
	return t.yield(d) && t.n.Up && t.n.life == t.life
}

// stopTasks ends the tasks of a life that is over. They run to their ends without sleeping, on a disk that is nobody's any more.
func (n *Node) stopTasks() {
	tasks := n.tasks
	n.tasks = nil
	n.stop(tasks)
}

func (n *Node) stop(tasks []*task) {
	for _, t := range tasks {
		if t == n.c.running {
			continue // it called Crash, and ends by itself
		}
		outer := n.c.running
		n.c.running = t
		t.stop()
		n.c.running = outer
	}
}

// flush is what the log writer does when something is pending.
func (n *Node) flush() {
	life := n.life
	for {
		if !n.Sched.FlushLog() || n.life != life {
			return
		}
		if !n.Sched.LogFull() {
			break
		}
		if !n.c.sleep(200 * time.Millisecond) {
			return
		}
	}
	if !n.Sched.MaintainLog() || n.life != life {
		return
	}
	n.flushing = false
	n.idle++
	n.sealWhenIdle(n.idle)
}

func (n *Node) sealWhenIdle(idle uint64) {
	n.after(time.Second, func() {
		if n.idle != idle || n.flushing {
			return
		}
		n.flushing = true
		n.spawn(0, func() {
			life := n.life
			if n.Sched.SealLog() && n.life == life && n.Sched.MaintainLog() && n.life == life {
				n.flushing = false
			}
		})
	})
}

// fs is the node's disk as its process sees it.
func (n *Node) fs() vfs.FS {
	life := n.life
	var disk vfs.FS = n.disk
	if n.c.Opt.FS != nil {
		disk = n.c.Opt.FS(n, disk)
	}
	return vfs.Inject(disk, func(op *vfs.Op) error {
		if n.life != life {
			return ErrCrashed
		}
		if n.c.Opt.Disk != nil {
			if err := n.c.Opt.Disk(n, op); err != nil {
				return err
			}
		}
		if op.Kind == vfs.OpDatasync && n.c.running != nil {
			d := n.SyncTime
			if d == 0 {
				d = flushDelay
			}
			if !n.c.sleep(n.c.jitter(d)) {
				return ErrCrashed
			}
		}
		if n.life != life {
			return ErrCrashed
		}
		return nil
	})
}

// fatal is the end of a process that has met an error.
func (n *Node) fatal(life uint64, err error) {
	c := n.c
	if n.life != life {
		return // it is dead already
	}
	if !c.Opt.FailStop {
		if c.Failed == nil {
			c.Failed = err
		}
		return
	}
	if c.Opt.OnFatal != nil {
		c.Opt.OnFatal(n, err)
	}
	tasks := n.tasks // they may meet the error, too: they end when this event is over
	n.tasks = nil
	c.Crash(n.ID)
	c.after(0, func() { n.stop(tasks) })
}

// Pause stops everything on a node for d, as SIGSTOP does: its clock goes on.
func (n *Node) Pause(d time.Duration) {
	n.paused = max(n.paused, n.c.now+engine.Instant(d))
	n.after(d, n.pump)
}

// Wipe destroys the disk and all that is on it. The node must be down.
func (n *Node) Wipe() { n.wipe() }
