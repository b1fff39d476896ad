package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sort"
	"sync"
)

// Mem is a file system in memory that knows what is durable, so that Crash can tell what a power cut leaves.
type Mem struct {
	mu    sync.Mutex
	names map[string]*inode // what programs see
	// durable is what the directories hold after a crash in which every pending change of a directory is lost.
	durable map[string]*inode
	pending []dirChange
	dirs    map[string]bool
}

// dirChange is a change of a directory that is not synced yet. A rename has both names, a removal only from.
type dirChange struct {
	from, to string
	node     *inode
}

type inode struct {
	data    []byte // what programs see
	durable []byte
	dirty   []change // the changes of data since the last Datasync, in order
}

// change is a write of data at off, or, if data is nil, a change of the length to off.
type change struct {
	off  int64
	data []byte
}

// CrashPolicy tells what a power cut does to what was not synced. The zero value loses all of it.
type CrashPolicy struct {
	// KeepWrite is the probability that an unsynced write survives whole.
	KeepWrite float64
	// TearWrite is the probability that an unsynced write which did not survive whole survives in parts: each of its sectors
	// is there or not.
	TearWrite float64
	// KeepDir is the probability that an unsynced change of a directory survives; each independently of the others.
	KeepDir float64
}

// NewMem returns an empty file system.
func NewMem() *Mem {
	return &Mem{names: map[string]*inode{}, durable: map[string]*inode{}, dirs: map[string]bool{}}
}

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] != nil {
		return nil, pathError("create", name, fs.ErrExist)
	}
	if !m.dirs[filepath.Dir(name)] {
		return nil, pathError("create", name, fs.ErrNotExist)
	}
	n := &inode{}
	m.names[name] = n
	m.pending = append(m.pending, dirChange{to: name, node: n})
	return &memFile{fs: m, node: n, name: name}, nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[name]
	if n == nil {
		return nil, pathError("open", name, fs.ErrNotExist)
	}
	return &memFile{fs: m, node: n, name: name}, nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return pathError("remove", name, fs.ErrNotExist)
	}
	delete(m.names, name)
	m.pending = append(m.pending, dirChange{from: name})
	return nil
}

// Rename implements FS.
func (m *Mem) Rename(oldName, newName string) error {
	oldName, newName = filepath.Clean(oldName), filepath.Clean(newName)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[oldName]
	if n == nil {
		return pathError("rename", oldName, fs.ErrNotExist)
	}
	delete(m.names, oldName)
	m.names[newName] = n
	m.pending = append(m.pending, dirChange{from: oldName, to: newName, node: n})
	return nil
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	dir = filepath.Clean(dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirs[dir] {
		return nil, pathError("list", dir, fs.ErrNotExist)
	}
	var names []string
	for name := range m.names {
		if filepath.Dir(name) == dir {
			names = append(names, filepath.Base(name))
		}
	}
	sort.Strings(names)
	return names, nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for d := filepath.Clean(dir); !m.dirs[d]; d = filepath.Dir(d) {
		m.dirs[d] = true
	}
	return nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	dir = filepath.Clean(dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	rest := m.pending[:0]
	for _, c := range m.pending {
		if c.dir() != dir {
			rest = append(rest, c)
			continue
		}
		c.apply(m.durable, c.node)
	}
	m.pending = rest
	return nil
}

// dir is the directory that c changes.
func (c dirChange) dir() string {
	if c.to != "" {
		return filepath.Dir(c.to)
	}
	return filepath.Dir(c.from)
}

func (c dirChange) apply(names map[string]*inode, n *inode) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = n
	}
}

// Crash returns what a power cut at this moment leaves, as policy and r decide. m itself goes on unharmed.
func (m *Mem) Crash(r *rand.Rand, policy CrashPolicy) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := NewMem()
	for d := range m.dirs {
		out.dirs[d] = true
	}
	for name, n := range m.durable {
		out.durable[name] = n
	}
	for _, c := range m.pending {
		if r.Float64() < policy.KeepDir {
			c.apply(out.durable, c.node)
		}
	}
	names := make([]string, 0, len(out.durable))
	for name := range out.durable {
		names = append(names, name)
	}
	sort.Strings(names) // so that equal seeds give equal disks
	survivors := map[*inode]*inode{}
	for _, name := range names {
		n := out.durable[name]
		if survivors[n] == nil {
			survivors[n] = n.crash(r, policy)
		}
		out.durable[name] = survivors[n]
		out.names[name] = survivors[n]
	}
	return out
}

func (n *inode) crash(r *rand.Rand, policy CrashPolicy) *inode {
	data := append([]byte(nil), n.durable...)
	for _, c := range n.dirty {
		if r.Float64() < policy.KeepWrite {
			data = c.apply(data)
			continue
		}
		if c.data == nil || r.Float64() >= policy.TearWrite {
			continue
		}
		for off := c.off; off < c.off+int64(len(c.data)); {
			end := min((off/SectorSize+1)*SectorSize, c.off+int64(len(c.data)))
			if r.IntN(2) == 0 {
				data = change{off: off, data: c.data[off-c.off : end-c.off]}.apply(data)
			}
			off = end
		}
	}
	return &inode{data: data, durable: append([]byte(nil), data...)}
}

func (c change) apply(data []byte) []byte {
	end := c.off + int64(len(c.data))
	if c.data == nil && end < int64(len(data)) {
		return data[:end]
	}
	if grow := end - int64(len(data)); grow > 0 {
		data = append(data, make([]byte, grow)...)
	}
	copy(data[c.off:], c.data)
	return data
}

// Corrupt changes the bytes of a file behind the back of everything, durably: fn gets the content.
func (m *Mem) Corrupt(name string, fn func(data []byte)) error {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[name]
	if n == nil {
		return pathError("corrupt", name, fs.ErrNotExist)
	}
	fn(n.data)
	n.durable = append(n.durable[:0], n.data...)
	n.dirty = nil
	return nil
}

// ForgetDirty does to a file what a kernel may do when a sync fails: what was written stays readable, and is never written to the
// disk, however often it is synced, unless it is written again.
func (m *Mem) ForgetDirty(name string) error {
	name = filepath.Clean(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[name]
	if n == nil {
		return pathError("forget", name, fs.ErrNotExist)
	}
	n.dirty = nil
	return nil
}

type memFile struct {
	fs     *Mem
	node   *inode
	name   string
	closed bool
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return 0, pathError("read", f.name, fs.ErrClosed)
	}
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	return len(p), f.change("write", change{off: off, data: append([]byte{}, p...)})
}

// Append implements File. It writes the sectors of its blocks that WriteAt would not, too: the ones before p as they are.
func (f *memFile) Append(p []byte, off int64) (int, error) {
	lead := off % BlockSize
	b := make([]byte, (lead+int64(len(p))+BlockSize-1)&^(BlockSize-1))
	if lead > 0 {
		if n, err := f.ReadAt(b[:lead], off-lead); n < int(lead) {
			return 0, err
		}
	}
	copy(b[lead:], p)
	return len(p), f.change("write", change{off: off - lead, data: b})
}

func (f *memFile) Truncate(size int64) error { return f.change("truncate", change{off: size}) }

func (f *memFile) Allocate(size int64) error {
	return f.change("allocate", change{data: make([]byte, size)})
}

func (f *memFile) change(op string, c change) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return pathError(op, f.name, fs.ErrClosed)
	}
	if c.off < 0 {
		return pathError(op, f.name, fmt.Errorf("negative offset %d", c.off))
	}
	f.node.data = c.apply(f.node.data)
	f.node.dirty = append(f.node.dirty, c)
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.node.data)), nil
}

func (f *memFile) Datasync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return pathError("sync", f.name, fs.ErrClosed)
	}
	for _, c := range f.node.dirty {
		f.node.durable = c.apply(f.node.durable)
	}
	f.node.dirty = f.node.dirty[:0]
	return nil
}

func (f *memFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.closed = true
	return nil
}
