package transport

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
)

// A frame is: length of the body u32, CRC32C of the body u32, body; big endian.
const frameHeader = 8

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Between peers a big message that may be overtaken goes in parts, each of which is a frame with a mark in its length; other frames go between
// them. The first part begins with the length of the message, and the parts of one message follow each other on its stream.
const (
	markPart  = 1 << 31
	markFirst = 1 << 30
	markBits  = markPart | markFirst
	// partHeader is that length.
	partHeader = 4
)

// sealFrame fills in the header of a frame whose first frameHeader bytes were left free, but for marks, and whose body goes on with tail.
func sealFrame(b, tail []byte) {
	body := b[frameHeader:]
	binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)&markBits|uint32(len(body)+len(tail)))
	binary.BigEndian.PutUint32(b[4:], crc32.Update(crc32.Checksum(body, castagnoli), castagnoli, tail))
}

func appendFrame(b, body []byte) []byte {
	off := len(b)
	b = append(b, make([]byte, frameHeader)...)
	b = append(b, body...)
	sealFrame(b[off:], nil)
	return b
}

// frameReader reads frames from a stream.
type frameReader struct {
	r   *bufio.Reader
	max int
	// eager is the size up to which a body is allocated before it has arrived; larger ones grow as they arrive, so that a
	// header alone cannot make us hold much.
	eager int
	hdr   [frameHeader]byte
	// parts: messages may come in parts. msg is what has come of one of total bytes.
	parts bool
	msg   []byte
	total int
	// hold, if set, is told of the bytes of a body as they are allocated.
	hold func(n int)
	// room, if set, is asked for room for a body of more than roomMin bytes; false: there is none any more. What it has room for may be allocated
	// before it has arrived, and is in the spares again if it does not arrive.
	room    func(n int) bool
	roomMin int
	spares  *sync.Pool
}

func newFrameReader(r io.Reader, max, eager int) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 16<<10), max: max, eager: eager}
}

// next returns the next message, in memory of its own. io.EOF is returned only between frames.
func (f *frameReader) next() ([]byte, error) {
	for {
		if _, err := io.ReadFull(f.r, f.hdr[:]); err != nil {
			return nil, err
		}
		size := binary.BigEndian.Uint32(f.hdr[:])
		if !f.parts || size&markPart == 0 {
			return f.whole(size)
		}
		switch msg, err := f.part(size&markFirst != 0, int(size&^markBits)); {
		case err == io.EOF:
			return nil, io.ErrUnexpectedEOF
		case err != nil || msg != nil:
			return msg, err
		}
	}
}

// part reads a part of size bytes, and returns the message if that was the last of it.
func (f *frameReader) part(first bool, size int) ([]byte, error) {
	sum := uint32(0)
	if first {
		if size < partHeader {
			return nil, fmt.Errorf("%w: first part of %d bytes, too short for a length", ErrMalformed, size)
		}
		var b [partHeader]byte
		if _, err := io.ReadFull(f.r, b[:]); err != nil {
			return nil, err
		}
		sum = crc32.Update(sum, castagnoli, b[:])
		total := int(binary.BigEndian.Uint32(b[:]))
		if size -= partHeader; f.msg != nil || total > f.max {
			return nil, fmt.Errorf("%w: part of a message of %d bytes, at most %d are allowed, one at a time", ErrMalformed, total, f.max)
		}
		f.msg, f.total = make([]byte, 0, min(total, f.eager)), total
	}
	n := len(f.msg)
	if size <= 0 || size > f.total-n {
		return nil, fmt.Errorf("%w: part of %d bytes behind %d of %d", ErrMalformed, size, n, f.total)
	}
	f.msg = slices.Grow(f.msg, size)[:n+size]
	if _, err := io.ReadFull(f.r, f.msg[n:]); err != nil {
		return nil, err
	}
	if got, want := crc32.Update(sum, castagnoli, f.msg[n:]), binary.BigEndian.Uint32(f.hdr[4:]); got != want {
		return nil, fmt.Errorf("%w: checksum of a part of %d bytes is %08x, not %08x", ErrMalformed, size, got, want)
	}
	if len(f.msg) < f.total {
		return nil, nil
	}
	msg := f.msg
	f.msg, f.total = nil, 0
	return msg, nil
}

// whole reads a message that is one frame.
func (f *frameReader) whole(size uint32) ([]byte, error) {
	if uint64(size) > uint64(f.max) {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMalformed, size, f.max)
	}
	body, err := f.body(int(size))
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if got, want := crc32.Checksum(body, castagnoli), binary.BigEndian.Uint32(f.hdr[4:]); got != want {
		return nil, fmt.Errorf("%w: checksum of %d bytes is %08x, not %08x", ErrMalformed, size, got, want)
	}
	return body, nil
}

func (f *frameReader) body(size int) ([]byte, error) {
	if f.room != nil && size > f.roomMin {
		return f.big(size)
	}
	body := make([]byte, min(size, f.eager))
	f.holds(len(body))
	if _, err := io.ReadFull(f.r, body); err != nil {
		return nil, err
	}
	for len(body) < size {
		n := len(body)
		grown := make([]byte, min(size, 2*n+1))
		copy(grown, body)
		f.holds(len(grown) - n)
		body = grown
		if _, err := io.ReadFull(f.r, body[n:]); err != nil {
			return nil, err
		}
	}
	return body, nil
}

// big reads a body that there must be room for.
func (f *frameReader) big(size int) ([]byte, error) {
	if !f.room(size) {
		return nil, io.ErrUnexpectedEOF
	}
	f.holds(size)
	spare, _ := f.spares.Get().(*[]byte)
	if spare == nil || cap(*spare) < size {
		b := make([]byte, size)
		spare = &b
	}
	body := (*spare)[:size]
	if _, err := io.ReadFull(f.r, body); err != nil {
		f.spares.Put(spare)
		return nil, err
	}
	return body, nil
}

func (f *frameReader) holds(n int) {
	if f.hold != nil {
		f.hold(n)
	}
}

// outbox collects what is to be written to one stream while a write is in progress, as frames in the making: each buffer
// begins with room for a frame header. In steady state two buffers alternate and nothing is allocated.
type outbox struct {
	mu sync.Mutex
	// wake tells the writer that there is something.
	wake chan struct{}
	// cond, if set, is told whenever bytes fell or the outbox was closed.
	cond *sync.Cond
	// hold, if set, is told of bytes that are added or were written.
	hold func(n int)

	cur   []byte // the frame being filled, or nil
	queue [][]byte
	// apart are messages, a frame each, whose order does not matter. One of them and one of the other frames go in turn, so that a small message
	// waits for one big one at most.
	apart     []apartFrame
	apartTurn bool
	// partMax, if not zero, is the size of the parts in which longer ones of them go, so that others wait for one part at most. part is the
	// beginning of the frame of the one that is being written, and partOf, if one is, how much of the message is in it.
	partMax int
	part    []byte
	partOf  int
	writing apartFrame // that is being written, if one is
	credits int64      // of it and of those that wait, to be given back by give
	give    func(n int64)
	spare   [][]byte
	bytes   int   // of bodies: filled, queued, and being written
	big     int   // of them those of frames larger than target, which hold one large message each
	err     error // set once it is closed

	// bytesMax bounds the messages that are large, and also those that are not: the ones do not keep the others out. A single message may
	// exceed the bound if no other of its kind waits.
	bytesMax int
	frameMax int
	target   int // a frame is closed before it grows over this; zero: one message per frame
}

func newOutbox(bytesMax, frameMax, target int) outbox {
	return outbox{wake: make(chan struct{}, 1), bytesMax: bytesMax, frameMax: frameMax, target: target}
}

// room makes cur ready to take a message of at most n bytes, or says why not. The lock is held.
func (o *outbox) room(n int) error {
	err := o.admits(n)
	if err == nil {
		o.open(n)
	}
	return err
}

// admits tells whether a message of at most n bytes is within the bounds. The lock is held.
func (o *outbox) admits(n int) error {
	switch {
	case o.err != nil:
		return o.err
	case n > o.frameMax:
		return ErrTooLarge
	case o.large(n) && o.big > 0 && o.big+n > o.bytesMax:
		return ErrOverloaded
	case !o.large(n) && o.bytes > o.big && o.bytes-o.big+n > o.bytesMax:
		return ErrOverloaded
	}
	return nil
}

// large tells whether n bytes are a frame by themselves.
func (o *outbox) large(n int) bool { return o.target > 0 && n > o.target }

// open is room without the bounds.
func (o *outbox) open(n int) {
	if o.cur != nil && len(o.cur)+n > o.target {
		o.queue = append(o.queue, o.cur)
		o.cur = nil
	}
	if o.cur != nil {
		return
	}
	if k := len(o.spare); k > 0 {
		o.cur, o.spare = o.spare[k-1], o.spare[:k-1]
		return
	}
	o.cur = make([]byte, frameHeader, frameHeader+max(n, 1024))
}

// put appends b, after room.
func (o *outbox) put(b []byte) {
	o.cur = append(o.cur, b...)
	o.added(len(b))
}

// added counts n bytes that a message has added to cur.
func (o *outbox) added(n int) {
	o.bytes += n
	if o.large(len(o.cur) - frameHeader) {
		o.big += n
	}
}

// apartFrame has one message, and perhaps credits that others get when it was taken.
type apartFrame struct {
	b      []byte // header and body, but for
	tail   []byte // its rest, which is not the frame's own and not changed any more
	credit int64
	sent   int // of the body, in parts
}

// bytes is the length of its body.
func (f *apartFrame) bytes() int { return len(f.b) - frameHeader + len(f.tail) }

// putApart queues a frame of one message that may be overtaken. The lock is held.
func (o *outbox) putApart(f apartFrame) {
	n := f.bytes()
	if o.bytes += n; o.large(n) {
		o.big += n
	}
	o.credits += f.credit
	o.apart = append(o.apart, f)
}

// add queues a message, or says why not.
func (o *outbox) add(b []byte) error {
	o.mu.Lock()
	err := o.room(len(b))
	if err == nil {
		o.put(b)
	}
	o.mu.Unlock()
	if err == nil {
		o.signal()
	}
	return err
}

// addApart is add for what may be overtaken by what is added, but not by what else is added apart. b is not copied.
func (o *outbox) addApart(b []byte) error {
	o.mu.Lock()
	err := o.admits(len(b))
	if err == nil {
		o.putApart(apartFrame{b: make([]byte, frameHeader), tail: b})
	}
	o.mu.Unlock()
	if err == nil {
		o.signal()
	}
	return err
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take returns the next frame, not yet sealed, or nil.
func (o *outbox) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.apart) > 0 && (o.apartTurn || o.cur == nil && len(o.queue) == 0) {
		f := o.apart[0]
		if o.partMax > 0 && f.bytes() > o.partMax {
			return o.takePart()
		}
		o.apart[0] = apartFrame{}
		o.apart, o.apartTurn = o.apart[1:], false
		o.writing = f
		return f.b
	}
	o.apartTurn = true
	if len(o.queue) > 0 {
		b := o.queue[0]
		copy(o.queue, o.queue[1:])
		o.queue[len(o.queue)-1] = nil
		o.queue = o.queue[:len(o.queue)-1]
		return b
	}
	b := o.cur
	o.cur = nil
	return b
}

// takePart returns the next part of what is first in apart. The lock is held.
func (o *outbox) takePart() []byte {
	f := &o.apart[0]
	total, mark := f.bytes(), uint32(markPart)
	o.part = append(o.part[:0], make([]byte, frameHeader)...)
	if f.sent == 0 {
		mark |= markFirst
		o.part = binary.BigEndian.AppendUint32(o.part, uint32(total))
	}
	binary.BigEndian.PutUint32(o.part, mark)
	o.partOf = min(o.partMax, total-f.sent)
	own, end := f.b[frameHeader:], f.sent+o.partOf
	o.writing = apartFrame{tail: f.tail[max(f.sent-len(own), 0):max(end-len(own), 0)]}
	o.part = append(o.part, own[min(f.sent, len(own)):min(end, len(own))]...)
	o.apartTurn = false
	if f.sent = end; end == total {
		o.writing.credit = f.credit
		o.apart[0] = apartFrame{}
		o.apart = o.apart[1:]
	}
	if o.large(total) {
		o.big -= o.partOf // here, for it is no longer known when it was written
	}
	return o.part
}

// done gives back what take returned, once it was written.
func (o *outbox) done(b []byte) {
	o.mu.Lock()
	n, part := len(b)-frameHeader+len(o.writing.tail), o.partOf > 0
	switch {
	case part:
		n, o.partOf = o.partOf, 0
	case o.large(n):
		o.big -= n
	}
	o.bytes -= n
	if o.hold != nil {
		o.hold(-n)
	}
	if n := o.writing.credit; n > 0 {
		o.give(n)
		o.credits -= n
	}
	o.writing = apartFrame{}
	if !part && len(o.spare) < 2 && cap(b) <= max(o.target, 4096)*2 {
		o.spare = append(o.spare, b[:frameHeader])
	}
	if o.cond != nil {
		o.cond.Broadcast()
	}
	o.mu.Unlock()
}

// shrink forgets buffers that nothing is in.
func (o *outbox) shrink() {
	o.mu.Lock()
	o.spare = nil
	if o.partOf == 0 {
		o.part = nil
	}
	o.mu.Unlock()
}

func (o *outbox) close(err error) {
	o.mu.Lock()
	if o.err == nil {
		o.err = err
	}
	o.cur, o.queue, o.spare, o.apart = nil, nil, nil, nil
	if o.credits > 0 {
		o.give(o.credits)
		o.writing.credit, o.credits = 0, 0
	}
	if o.cond != nil {
		o.cond.Broadcast()
	}
	o.mu.Unlock()
}

// owes tells whether others could have credits if what is here were taken.
func (o *outbox) owes() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.credits > 0
}

func (o *outbox) pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes
}
