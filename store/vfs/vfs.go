package vfs

import "io"

// SectorSize is the unit that a disk writes as a whole.
const SectorSize = 512

// BlockSize is the unit of Append, and that of file systems: at least a sector, at most a page of memory.
const BlockSize = 4096

// FS is a file system. Names are paths with the separator of the operating system. Safe for concurrent use.
type FS interface {
	// Create makes a new file and opens it for reading and writing. An existing file is an error.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// Remove removes a file.
	Remove(name string) error
	// Rename renames a file within one directory, atomically; an existing file of the new name is replaced.
	Rename(oldName, newName string) error
	// List returns the sorted base names of the files in dir.
	List(dir string) ([]string, error)
	// MkdirAll makes a directory, and its parents. They are durable.
	MkdirAll(dir string) error
	// SyncDir makes the entries of dir durable.
	SyncDir(dir string) error
}

// File is an open file. Safe for concurrent reads beside one writer.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Append writes p at off, as WriteAt does, and zeros behind it up to the end of its last block of BlockSize bytes. It is for files that are written from
	// front to back and seldom read: where the system can, what it writes does not stay in memory, and takes none from what does.
	Append(p []byte, off int64) (int, error)
	// Size returns the length of the file.
	Size() (int64, error)
	// Allocate makes the file size bytes long and fills it with written zeros, so that a later write of these bytes needs no
	// new block and its sync no change of metadata.
	Allocate(size int64) error
	// Truncate sets the length of the file.
	Truncate(size int64) error
	// Datasync makes the content, and the metadata that is needed to read it, durable.
	Datasync() error
	Close() error
}
