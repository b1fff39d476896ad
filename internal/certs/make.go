package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// NodeUnit is the organizational unit that makes a certificate a node's.
const NodeUnit = "kiloraft-node"

// backdate is how much earlier than now a certificate begins, for machines whose clocks are late.
const backdate = time.Hour

// IsNode tells whether a certificate is a node's.
func IsNode(c *x509.Certificate) bool { return slices.Contains(c.Subject.OrganizationalUnit, NodeUnit) }

// Pair is a certificate and its key, in PEM.
type Pair struct{ Cert, Key []byte }

// Request says what certificate is wanted.
type Request struct {
	Name  string // the user's, or the node's
	Node  bool
	Hosts []string // that a node is reached at: names and IP addresses
	Valid time.Duration
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	return n
}

// NewCA makes an authority.
func NewCA(name string, now time.Time, valid time.Duration) (Pair, error) {
	t := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-backdate), NotAfter: now.Add(valid),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	return sign(t, nil, nil)
}

// Issue makes a certificate signed by the authority.
func (ca Pair) Issue(q Request, now time.Time) (Pair, error) {
	pair, err := tls.X509KeyPair(ca.Cert, ca.Key)
	if err != nil {
		return Pair{}, fmt.Errorf("authority: %w", err)
	}
	if !pair.Leaf.IsCA {
		return Pair{}, errors.New("the authority's certificate is none of an authority")
	}
	t := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: q.Name}, NotBefore: now.Add(-backdate), NotAfter: now.Add(q.Valid),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if q.Node {
		t.Subject.OrganizationalUnit = []string{NodeUnit}
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		if len(q.Hosts) == 0 {
			return Pair{}, errors.New("a node's certificate names the hosts that it is reached at")
		}
		for _, h := range q.Hosts {
			if ip := net.ParseIP(h); ip != nil {
				t.IPAddresses = append(t.IPAddresses, ip)
			} else {
				t.DNSNames = append(t.DNSNames, h)
			}
		}
	}
	if t.NotAfter.After(pair.Leaf.NotAfter) {
		t.NotAfter = pair.Leaf.NotAfter
	}
	return sign(t, pair.Leaf, pair.PrivateKey)
}

// sign makes a key and a certificate of it, which signs itself if there is no parent.
func sign(t, parent *x509.Certificate, parentKey any) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	if parent == nil {
		parent, parentKey = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, parentKey)
	if err != nil {
		return Pair{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}, nil
}
