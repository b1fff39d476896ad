package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kiloraft/kiloraft/internal/durable"
)

// Dir is a directory of certificates as kiloraft cert makes it: the authority's ca.crt and ca.key, and of each node and user a certificate
// and its key, called after them. Whoever can read ca.key can be any node and any user.
type Dir struct {
	Path    string
	Replace bool // files that exist; else they are an error that is fs.ErrExist
}

// Names are the files of one process: those that Open reads.
type Names struct{ CA, Cert, Key string }

// authority is what the authority's files are called.
const authority = "ca"

// Names gives the files of a node, or else of a user.
func (d Dir) Names(name string, node bool) Names {
	base := filepath.Join(d.Path, fileName(name, node))
	return Names{CA: d.authorityFile(), Cert: base + ".crt", Key: base + ".key"}
}

func (d Dir) authorityFile() string { return filepath.Join(d.Path, authority+".crt") }

func fileName(name string, node bool) string {
	if node {
		return "node-" + name
	}
	return "client-" + name
}

// MakeCA makes an authority, and gives the file of its certificate.
func (d Dir) MakeCA(valid time.Duration) (string, error) {
	p, err := NewCA("kiloraft", time.Now(), valid)
	if err != nil {
		return "", err
	}
	return d.authorityFile(), d.write(authority, p)
}

// Issue makes a certificate signed by the authority of the directory, and gives its files.
func (d Dir) Issue(q Request) (Names, error) {
	ca := Pair{}
	for ending, into := range map[string]*[]byte{".crt": &ca.Cert, ".key": &ca.Key} {
		b, err := os.ReadFile(filepath.Join(d.Path, authority+ending))
		if err != nil {
			return Names{}, fmt.Errorf("the authority: %w; make one with kiloraft cert ca", err)
		}
		*into = b
	}
	p, err := ca.Issue(q, time.Now())
	if err != nil {
		return Names{}, err
	}
	return d.Names(q.Name, q.Node), d.write(fileName(q.Name, q.Node), p)
}

// write puts a pair into the directory, each file at once and the key first: whoever reads them meanwhile gets pairs that fit, or sees
// that they do not.
func (d Dir) write(name string, p Pair) error {
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return err
	}
	base := filepath.Join(d.Path, name)
	for _, file := range []string{base + ".key", base + ".crt"} {
		if _, err := os.Lstat(file); err == nil && !d.Replace {
			return fmt.Errorf("%s: %w", file, fs.ErrExist)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := replaceFile(base+".key", p.Key, 0o600); err != nil {
		return err
	}
	return replaceFile(base+".crt", p.Cert, 0o644)
}

func replaceFile(name string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = durable.Replace(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
