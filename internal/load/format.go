package load

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

// Format is how keys and values lie in files.
type Format string

// The formats.
const (
	TSV   Format = "tsv"
	JSONL Format = "jsonl"
	Dir   Format = "dir"
)

// lineBytesMax bounds a line: the largest value (8 MiB) in the worst JSON notation (six bytes for one), and a key.
const lineBytesMax = 49 << 20

// Guess chooses the format for a name that the user gave no format for.
func Guess(path string) Format {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return Dir
	}
	switch {
	case strings.HasSuffix(path, ".jsonl"), strings.HasSuffix(path, ".ndjson"), strings.HasSuffix(path, ".json"):
		return JSONL
	case strings.HasSuffix(path, string(os.PathSeparator)):
		return Dir
	}
	return TSV
}

// ParseFormat reads the name of a format.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case TSV, JSONL, Dir:
		return f, nil
	}
	return "", fmt.Errorf("format %q: want tsv, jsonl or dir", s)
}

// appendTSV appends one line. Keys and values are raw but for tab, newline and backslash.
func appendTSV(dst, key, value []byte) []byte {
	dst = appendTSVField(dst, key)
	dst = append(dst, '\t')
	dst = appendTSVField(dst, value)
	return append(dst, '\n')
}

func appendTSVField(dst, b []byte) []byte {
	for {
		i := bytes.IndexAny(b, "\t\n\\")
		if i < 0 {
			return append(dst, b...)
		}
		dst = append(dst, b[:i]...)
		switch b[i] {
		case '\t':
			dst = append(dst, '\\', 't')
		case '\n':
			dst = append(dst, '\\', 'n')
		default:
			dst = append(dst, '\\', '\\')
		}
		b = b[i+1:]
	}
}

func parseTSV(line []byte) (key, value []byte, err error) {
	k, v, ok := bytes.Cut(line, []byte{'\t'})
	if !ok {
		return nil, nil, errors.New("no tab between key and value")
	}
	if bytes.IndexByte(v, '\t') >= 0 {
		return nil, nil, errors.New(`more than one tab: a tab within a value is written \t`)
	}
	if key, err = parseTSVField(k); err != nil {
		return nil, nil, err
	}
	value, err = parseTSVField(v)
	return key, value, err
}

func parseTSVField(b []byte) ([]byte, error) {
	out := make([]byte, 0, len(b))
	for {
		i := bytes.IndexByte(b, '\\')
		if i < 0 {
			return append(out, b...), nil
		}
		out = append(out, b[:i]...)
		if i+1 == len(b) {
			return nil, errors.New("a backslash at the end of a field")
		}
		switch b[i+1] {
		case 't':
			out = append(out, '\t')
		case 'n':
			out = append(out, '\n')
		case '\\':
			out = append(out, '\\')
		default:
			return nil, fmt.Errorf(`unknown escape \%c: only \t, \n and \\ are known`, b[i+1])
		}
		b = b[i+2:]
	}
}

// jsonRecord is a line of jsonl. Each of key and value is present in exactly one of its two forms.
type jsonRecord struct {
	Key      *string `json:"key,omitempty"`
	KeyB64   *string `json:"key_b64,omitempty"`
	Value    *string `json:"value,omitempty"`
	ValueB64 *string `json:"value_b64,omitempty"`
}

func appendJSONL(dst, key, value []byte) []byte {
	var r jsonRecord
	text := func(b []byte) (plain, b64 *string) {
		s := string(b)
		if utf8.Valid(b) {
			return &s, nil
		}
		s = base64.StdEncoding.EncodeToString(b)
		return nil, &s
	}
	r.Key, r.KeyB64 = text(key)
	r.Value, r.ValueB64 = text(value)
	buf := bytes.NewBuffer(dst)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		panic("load: a record of strings does not encode: " + err.Error())
	}
	return buf.Bytes()
}

func parseJSONL(line []byte) (key, value []byte, err error) {
	// The decoder would put U+FFFD in place of what is no UTF-8, silently.
	if !utf8.Valid(line) {
		return nil, nil, errors.New("not UTF-8: such bytes belong in key_b64 and value_b64")
	}
	if loneSurrogate(line) {
		return nil, nil, errors.New(`half of a surrogate pair (\ud800 to \udfff): such bytes belong in key_b64 and value_b64`)
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	var r jsonRecord
	if err := dec.Decode(&r); err != nil {
		return nil, nil, fmt.Errorf("not a JSON record: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, nil, errors.New("more than one JSON value in the line")
	}
	if key, err = oneOf("key", r.Key, r.KeyB64); err != nil {
		return nil, nil, err
	}
	value, err = oneOf("value", r.Value, r.ValueB64)
	return key, value, err
}

func oneOf(name string, plain, b64 *string) ([]byte, error) {
	switch {
	case plain != nil && b64 != nil:
		return nil, fmt.Errorf("both %s and %s_b64", name, name)
	case plain != nil:
		return []byte(*plain), nil
	case b64 != nil:
		b, err := base64.StdEncoding.DecodeString(*b64)
		if err != nil {
			return nil, fmt.Errorf("%s_b64: %w", name, err)
		}
		return b, nil
	}
	return nil, fmt.Errorf("neither %s nor %s_b64", name, name)
}

// loneSurrogate finds a \uD800–\uDFFF escape that is not half of a pair.
func loneSurrogate(b []byte) bool {
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		u, ok := unicodeEscape(b[i:])
		if !ok {
			i++ // the escaped character, which may be a backslash
			continue
		}
		i += 5
		if u < 0xd800 || u > 0xdfff {
			continue
		}
		low, ok := unicodeEscape(b[i+1:])
		if u >= 0xdc00 || !ok || low < 0xdc00 || low > 0xdfff {
			return true
		}
		i += 6
	}
	return false
}

func unicodeEscape(b []byte) (u rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	if _, err := fmt.Sscanf(string(b[2:6]), "%04x", &u); err != nil {
		return 0, false
	}
	return u, true
}

var errLineTooLong = fmt.Errorf("line longer than %d bytes", lineBytesMax)

// lineReader yields lines without their newline. A line over the limit is skipped whole and reported as errLineTooLong.
type lineReader struct {
	r   *bufio.Reader
	buf []byte
}

func newLineReader(r io.Reader) *lineReader { return &lineReader{r: bufio.NewReaderSize(r, 1<<20)} }

// next returns a line that is valid until the next call; io.EOF after the last.
func (l *lineReader) next() ([]byte, error) {
	l.buf = l.buf[:0]
	tooLong := false
	for {
		part, err := l.r.ReadSlice('\n')
		if len(l.buf)+len(part) > lineBytesMax {
			tooLong, l.buf = true, l.buf[:0]
		} else if !tooLong {
			l.buf = append(l.buf, part...)
		}
		switch {
		case err == bufio.ErrBufferFull:
			continue
		case err == io.EOF && (len(l.buf) > 0 || tooLong):
			// the last line has no newline
		case err != nil:
			return nil, err
		}
		if tooLong {
			return nil, errLineTooLong
		}
		return bytes.TrimSuffix(l.buf, []byte{'\n'}), nil
	}
}
