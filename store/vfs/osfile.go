package vfs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kiloraft/kiloraft/internal/fault"
)

// osFile is a file of the operating system. What Allocate and Append write goes past the page cache, where the file system lets it: they write
// whole blocks, and pages of memory for bytes that nobody reads again cost more than the disk does. So one file is written through two descriptors. To
// sync one of them is to sync the file, as POSIX has it for fdatasync, and the system drops the pages of what is written past them.
type osFile struct {
	*os.File
	// past writes past the page cache. nil: not opened yet, or, if cached, not to be had.
	past   *os.File
	cached bool
	// tail is what Append has written last, from the start of its last block to end; empty if it is not known.
	tail []byte
	end  int64
}

// pieceBytes is how much is written at a time: enough for the disk to be busy, and little enough for the syncs of other files not to wait long behind it.
const pieceBytes = 512 << 10

// pieces are reused buffers of pieceBytes, at addresses that are multiples of BlockSize.
var pieces = sync.Pool{New: func() any {
	b := make([]byte, pieceBytes+BlockSize)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % BlockSize
	b = b[skip : skip+pieceBytes]
	return &b
}}

// writeBlocks writes a whole number of blocks, of memory from pieces.
func (f *osFile) writeBlocks(p []byte, off int64) error {
	if f.past == nil && !f.cached {
		past, err := openPast(f.File)
		f.past, f.cached = past, err != nil
	}
	if f.past != nil {
		_, err := f.past.WriteAt(p, off)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		// Blocks of this file system are of another kind. All of p is written again.
		if err := f.past.Close(); err != nil {
			return err
		}
		f.past, f.cached = nil, true
	}
	_, err := f.File.WriteAt(p, off)
	return err
}

// WriteAt implements io.WriterAt.
func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	f.tail = f.tail[:0]
	return f.File.WriteAt(p, off)
}

func (f *osFile) Truncate(size int64) error {
	f.tail = f.tail[:0]
	return f.File.Truncate(size)
}

// Append implements File.
func (f *osFile) Append(p []byte, off int64) (int, error) {
	piece := pieces.Get().(*[]byte)
	defer pieces.Put(piece)
	b := *piece
	lead := int(off % BlockSize)
	if err := f.head(b[:lead], off-int64(lead)); err != nil {
		return 0, err
	}
	for done := 0; ; {
		n := copy(b[lead:], p[done:])
		end := lead + n
		whole := (end + BlockSize - 1) &^ (BlockSize - 1)
		clear(b[end:whole])
		at := off + int64(done-lead)
		if err := f.writeBlocks(b[:whole], at); err != nil {
			return done, err
		}
		if done += n; done == len(p) {
			f.tail = append(f.tail[:0], b[end&^(BlockSize-1):end]...)
			f.end = at + int64(end)
			return done, nil
		}
		lead = 0
	}
}

// head fills b with what lies at off, the start of a block.
func (f *osFile) head(b []byte, off int64) error {
	if k := len(f.tail); k > 0 && off == f.end-int64(k) {
		clear(b[copy(b, f.tail):])
		return nil
	}
	n, err := f.ReadAt(b, off)
	if n < len(b) {
		return fmt.Errorf("read the start of the block that is written to: %w", err)
	}
	return nil
}

func (f *osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// allocateChunk is how much Allocate writes between two syncs where it goes through the page cache: small enough that the syncs of other files on the device do
// not wait long behind it.
const allocateChunk = 4 << 20

func (f *osFile) Allocate(size int64) error {
	// Reserving first makes a full disk fail at once, before anything was written, and keeps the file in few pieces.
	if err := ignoringEINTR(func() error { return reserve(f.File, size) }); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("allocate %s: %w", f.Name(), err)
	}
	f.tail = f.tail[:0]
	piece := pieces.Get().(*[]byte)
	defer pieces.Put(piece)
	zeros := *piece
	clear(zeros)
	for off := int64(0); off < size; {
		b := zeros[:min(size-off, pieceBytes)]
		var err error
		if len(b)%BlockSize == 0 {
			err = f.writeBlocks(b, off)
		} else {
			_, err = f.WriteAt(b, off)
		}
		if err != nil {
			return err
		}
		off += int64(len(b))
		if off == size || f.cached && off%allocateChunk == 0 {
			if err := f.Datasync(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *osFile) Datasync() error {
	fault.Delay(fault.DiskSync)
	if err := ignoringEINTR(func() error { return datasync(f.File) }); err != nil {
		return fmt.Errorf("fdatasync %s: %w", f.Name(), err)
	}
	return nil
}

func (f *osFile) Close() error {
	if f.past != nil {
		return errors.Join(f.past.Close(), f.File.Close())
	}
	return f.File.Close()
}
