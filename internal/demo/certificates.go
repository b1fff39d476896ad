package demo

import (
	"errors"
	"io/fs"
	"net/http"
	"path/filepath"
	"time"

	"github.com/kiloraft/kiloraft/internal/certs"
)

// certsValid is for how long the certificates of a demo are good.
const certsValid = 365 * 24 * time.Hour

// administrator is the user that exists in every cluster.
const administrator = "root"

// makeCerts makes the certificates of the nodes and of the administrator in dir/certs. Those that a demo before has made there are kept.
func makeCerts(dir string, nodes []string) (certs.Dir, error) {
	d := certs.Dir{Path: filepath.Join(dir, "certs")}
	if _, err := d.MakeCA(certsValid); err != nil && !errors.Is(err, fs.ErrExist) {
		return d, err
	}
	requests := []certs.Request{{Name: administrator}}
	for _, n := range nodes {
		requests = append(requests, certs.Request{Name: n, Node: true, Hosts: []string{"localhost", "127.0.0.1"}})
	}
	for _, q := range requests {
		q.Valid = certsValid
		if _, err := d.Issue(q); err != nil && !errors.Is(err, fs.ErrExist) {
			return d, err
		}
	}
	return d, nil
}

// URL is where the process serves HTTP.
func (s *Spec) URL() string {
	if s.Certs.CA != "" {
		return "https://" + s.HTTP
	}
	return "http://" + s.HTTP
}

// httpClient makes a client for requests to the process.
func (s *Spec) httpClient() (*http.Client, error) {
	c := &http.Client{Timeout: time.Second}
	if s.Certs.CA != "" {
		files, err := certs.Open(s.Certs.CA, "", "", certs.Options{})
		if err != nil {
			return nil, err
		}
		c.Transport = &http.Transport{TLSClientConfig: files.Client()}
	}
	return c, nil
}
