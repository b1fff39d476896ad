package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// The handshake is spoken on the bare connection, before yamux:
//
//	dialler                       listener
//	hello (who, what it holds) ─►
//	                          ◄─ welcome (who, what it dropped), or refusal
//	confirm, or refusal        ─►
//
// Each is a frame of: magic "KRFT", kind u8, length u16, CRC32C of the body u32, body. The length is checked before anything
// is allocated, and a deadline covers it all.
const (
	magic             = "KRFT"
	handshakeHeader   = 4 + 1 + 2 + 4
	handshakeBytesMax = 2048
	addrBytesMax      = 512
	textBytesMax      = 512
)

const (
	kindHello   byte = 1
	kindWelcome byte = 2
	kindConfirm byte = 3
	kindRefusal byte = 4
)

const (
	rolePeer   = 1
	roleClient = 2
)

// hello is what a dialler says.
type hello struct {
	versionMin, versionMax uint64
	role                   uint64
	cluster                ID
	node                   engine.NodeID
	identity               ID
	incarnations           []uint64
	addr                   string
	session                uint64 // the id of the session that is to be
	held                   uint64 // the session that the dialler still holds with this node (rule Cluster8), or zero
	// A client's, absent in what older ones send.
	user     string
	password []byte
}

// welcome is what a listener answers.
type welcome struct {
	version      uint64
	cluster      ID
	node         engine.NodeID
	identity     ID
	incarnations []uint64
	addr         string
	dropped      uint64 // the session that the listener gave up because the dialler does not hold it any more, or zero
}

func appendIncarnations(b []byte, list []uint64) []byte {
	if len(list) > IncarnationsMax {
		list = list[len(list)-IncarnationsMax:]
	}
	b = mp.AppendArray(b, len(list))
	for _, v := range list {
		b = mp.AppendUint(b, v)
	}
	return b
}

func readIncarnations(r *mp.Reader) []uint64 {
	n := r.Array()
	if n > IncarnationsMax {
		r.Fail("too many incarnations")
		return nil
	}
	list := make([]uint64, 0, n)
	for range n {
		list = append(list, r.Uint())
	}
	return list
}

func readID(r *mp.Reader) (id ID) {
	b := r.Bin()
	if len(b) != len(id) {
		r.Fail("not an id of 16 bytes")
		return id
	}
	copy(id[:], b)
	return id
}

func readAddr(r *mp.Reader) string {
	b := r.Bin()
	if len(b) > addrBytesMax {
		r.Fail("address too long")
		return ""
	}
	return string(b)
}

// The fields of a hello: those that all have sent, and those of today.
const (
	helloFieldsMin = 10
	helloFields    = 12
)

// credentialBytesMax bounds a user name or a password in a hello.
const credentialBytesMax = 256

func readCredential(r *mp.Reader) []byte {
	b := r.Bin()
	if len(b) > credentialBytesMax {
		r.Fail("user or password too long")
		return nil
	}
	return append([]byte(nil), b...)
}

func (h *hello) encode() []byte {
	b := mp.AppendArray(nil, helloFields)
	b = mp.AppendUint(b, h.versionMin)
	b = mp.AppendUint(b, h.versionMax)
	b = mp.AppendUint(b, h.role)
	b = mp.AppendBin(b, h.cluster[:])
	b = mp.AppendUint(b, uint64(h.node))
	b = mp.AppendBin(b, h.identity[:])
	b = appendIncarnations(b, h.incarnations)
	b = mp.AppendString(b, h.addr)
	b = mp.AppendUint(b, h.session)
	b = mp.AppendUint(b, h.held)
	return mp.AppendBin(mp.AppendString(b, h.user), h.password)
}

// decode reads a hello. Fields that a later version adds are skipped: the version range decides whether we understand it.
func (h *hello) decode(b []byte) error {
	r := mp.NewReader(b)
	extra := r.ArrayMin(helloFieldsMin)
	h.versionMin, h.versionMax = r.Uint(), r.Uint()
	h.role = r.Uint()
	h.cluster = readID(&r)
	h.node = engine.NodeID(r.Uint())
	h.identity = readID(&r)
	h.incarnations = readIncarnations(&r)
	h.addr = readAddr(&r)
	h.session, h.held = r.Uint(), r.Uint()
	if extra >= helloFields-helloFieldsMin {
		h.user, h.password = string(readCredential(&r)), readCredential(&r)
	}
	return r.Err()
}

const welcomeFields = 7

func (w *welcome) encode() []byte {
	b := mp.AppendArray(nil, welcomeFields)
	b = mp.AppendUint(b, w.version)
	b = mp.AppendBin(b, w.cluster[:])
	b = mp.AppendUint(b, uint64(w.node))
	b = mp.AppendBin(b, w.identity[:])
	b = appendIncarnations(b, w.incarnations)
	b = mp.AppendString(b, w.addr)
	return mp.AppendUint(b, w.dropped)
}

func (w *welcome) decode(b []byte) error {
	r := mp.NewReader(b)
	r.ArrayMin(welcomeFields)
	w.version = r.Uint()
	w.cluster = readID(&r)
	w.node = engine.NodeID(r.Uint())
	w.identity = readID(&r)
	w.incarnations = readIncarnations(&r)
	w.addr = readAddr(&r)
	w.dropped = r.Uint()
	return r.Err()
}

func (e *Refused) encode() []byte {
	text := e.Text
	if len(text) > textBytesMax {
		text = text[:textBytesMax]
	}
	return mp.AppendString(mp.AppendUint(mp.AppendArray(nil, 2), uint64(e.Reason)), text)
}

func decodeRefused(b []byte) error {
	r := mp.NewReader(b)
	r.ArrayMin(2)
	reason, text := r.Uint(), r.Bin()
	if r.Err() != nil || len(text) > textBytesMax {
		return refuse(ReasonMalformed, "unreadable refusal")
	}
	// The text goes into logs: printable characters only.
	clean := strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return '?'
		}
		return c
	}, string(text))
	return &Refused{Reason: Reason(min(reason, 255)), Text: clean, Remote: true}
}

func writeHandshake(w io.Writer, kind byte, body []byte) error {
	b := append(make([]byte, 0, handshakeHeader+len(body)), magic...)
	b = append(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
	_, err := w.Write(append(b, body...))
	return err
}

// errHTTP is a malformed handshake that looks like HTTP.
var errHTTP = errors.New("this port speaks the kiloraft protocol, not HTTP")

// readHandshake reads a frame of this kind. It returns a *Refused for a refusal and for what is not a handshake.
func readHandshake(r io.Reader, want byte) ([]byte, error) {
	var hdr [handshakeHeader]byte
	if _, err := io.ReadFull(r, hdr[:4]); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if string(hdr[:4]) != magic {
		switch string(hdr[:4]) {
		case "GET ", "POST", "PUT ", "HEAD", "OPTI", "PRI ", "DELE", "CONN":
			return nil, errHTTP
		}
		return nil, refuse(ReasonMalformed, "begins with %q", hdr[:4])
	}
	if _, err := io.ReadFull(r, hdr[4:]); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	size := int(binary.BigEndian.Uint16(hdr[5:]))
	if size > handshakeBytesMax {
		return nil, refuse(ReasonMalformed, "a handshake of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	switch {
	case crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(hdr[7:]):
		return nil, refuse(ReasonMalformed, "checksum of the handshake")
	case hdr[4] == kindRefusal:
		return nil, decodeRefused(body)
	case hdr[4] != want:
		return nil, refuse(ReasonMalformed, "handshake of kind %d where %d was expected", hdr[4], want)
	}
	return body, nil
}

// agree picks the highest common version.
func agree(aMin, aMax, bMin, bMax uint64) (uint64, *Refused) {
	v := min(aMax, bMax)
	if v < max(aMin, bMin) {
		return 0, refuse(ReasonVersion, "%d to %d here, %d to %d there", aMin, aMax, bMin, bMax)
	}
	return v, nil
}
