package vfs

// OpKind is what an operation does.
type OpKind uint8

// The operations that Inject shows to its predicate.
const (
	OpCreate OpKind = iota + 1
	OpOpen
	OpRemove
	OpRename
	OpList
	OpMkdir
	OpSyncDir
	OpRead
	OpWrite
	OpAllocate
	OpTruncate
	OpDatasync
	OpClose
)

var opNames = [...]string{"", "create", "open", "remove", "rename", "list", "mkdir", "syncdir", "read", "write", "allocate", "truncate", "datasync", "close"}

// String returns the name of the operation.
func (k OpKind) String() string { return opNames[k] }

// Changes tells whether the operation changes the disk or what of it is durable.
func (k OpKind) Changes() bool {
	switch k {
	case OpCreate, OpRemove, OpRename, OpSyncDir, OpWrite, OpAllocate, OpTruncate, OpDatasync:
		return true
	}
	return false
}

// Op is an operation that is about to happen.
type Op struct {
	Kind OpKind
	Name string
	Off  int64
	// Size is the number of bytes. A predicate may lower it for a write or a read and return an error: a short write or read.
	Size int
}

// Inject returns fs with errors: before each operation check is called, and if it returns an error the operation fails
// with it and does not happen; of a write or a read the first Size bytes happen, if check has lowered op.Size.
func Inject(fs FS, check func(op *Op) error) FS { return injectFS{fs, check} }

type injectFS struct {
	fs    FS
	check func(*Op) error
}

type injectFile struct {
	File
	fs   injectFS
	name string
}

func (i injectFS) try(kind OpKind, name string) error { return i.check(&Op{Kind: kind, Name: name}) }

func (i injectFS) Create(name string) (File, error) {
	if err := i.try(OpCreate, name); err != nil {
		return nil, err
	}
	return i.wrap(name)(i.fs.Create(name))
}

func (i injectFS) Open(name string) (File, error) {
	if err := i.try(OpOpen, name); err != nil {
		return nil, err
	}
	return i.wrap(name)(i.fs.Open(name))
}

func (i injectFS) wrap(name string) func(File, error) (File, error) {
	return func(f File, err error) (File, error) {
		if err != nil {
			return nil, err
		}
		return injectFile{f, i, name}, nil
	}
}

func (i injectFS) Remove(name string) error {
	if err := i.try(OpRemove, name); err != nil {
		return err
	}
	return i.fs.Remove(name)
}

func (i injectFS) Rename(oldName, newName string) error {
	if err := i.try(OpRename, oldName); err != nil {
		return err
	}
	return i.fs.Rename(oldName, newName)
}

func (i injectFS) List(dir string) ([]string, error) {
	if err := i.try(OpList, dir); err != nil {
		return nil, err
	}
	return i.fs.List(dir)
}

func (i injectFS) MkdirAll(dir string) error {
	if err := i.try(OpMkdir, dir); err != nil {
		return err
	}
	return i.fs.MkdirAll(dir)
}

func (i injectFS) SyncDir(dir string) error {
	if err := i.try(OpSyncDir, dir); err != nil {
		return err
	}
	return i.fs.SyncDir(dir)
}

func (f injectFile) ReadAt(p []byte, off int64) (int, error) {
	op := &Op{Kind: OpRead, Name: f.name, Off: off, Size: len(p)}
	if err := f.fs.check(op); err != nil {
		if op.Size < len(p) {
			n, _ := f.File.ReadAt(p[:op.Size], off)
			return n, err
		}
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f injectFile) WriteAt(p []byte, off int64) (int, error) { return f.write(f.File.WriteAt, p, off) }

func (f injectFile) Append(p []byte, off int64) (int, error) { return f.write(f.File.Append, p, off) }

func (f injectFile) write(write func([]byte, int64) (int, error), p []byte, off int64) (int, error) {
	op := &Op{Kind: OpWrite, Name: f.name, Off: off, Size: len(p)}
	if err := f.fs.check(op); err != nil {
		if op.Size < len(p) {
			n, _ := write(p[:op.Size], off)
			return n, err
		}
		return 0, err
	}
	return write(p, off)
}

func (f injectFile) Allocate(size int64) error {
	if err := f.fs.check(&Op{Kind: OpAllocate, Name: f.name, Size: int(size)}); err != nil {
		return err
	}
	return f.File.Allocate(size)
}

func (f injectFile) Truncate(size int64) error {
	if err := f.fs.check(&Op{Kind: OpTruncate, Name: f.name, Off: size}); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f injectFile) Datasync() error {
	if err := f.fs.try(OpDatasync, f.name); err != nil {
		return err
	}
	return f.File.Datasync()
}

func (f injectFile) Close() error {
	if err := f.fs.try(OpClose, f.name); err != nil {
		return err
	}
	return f.File.Close()
}
