package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// bucket is a Store in a bucket of an S3-compatible service.
type bucket struct {
	c            *minio.Client
	name, prefix string
}

// openS3 reads s3://BUCKET/PREFIX?endpoint=URL&region=NAME. Without an endpoint it is AWS_ENDPOINT_URL, or else Amazon's. The credentials
// are in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) or in the file that AWS_SHARED_CREDENTIALS_FILE
// names, never in the URL.
func openS3(text string) (Store, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if u.User != nil {
		return nil, fmt.Errorf("store s3://%s: credentials belong into the environment or a file, not into the URL", u.Host)
	}
	endpoint := u.Query().Get("endpoint")
	if endpoint == "" {
		endpoint = os.Getenv("AWS_ENDPOINT_URL")
	}
	if endpoint == "" {
		endpoint = "https://s3.amazonaws.com"
	}
	e, err := url.Parse(endpoint)
	if err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" {
		return nil, fmt.Errorf("store %s: endpoint %q: want http://HOST:PORT or https://HOST:PORT", text, endpoint)
	}
	c, err := minio.New(e.Host, &minio.Options{
		Secure: e.Scheme == "https",
		Region: u.Query().Get("region"),
		Creds:  credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}),
	})
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", text, err)
	}
	return &bucket{c: c, name: u.Host, prefix: strings.Trim(u.Path, "/")}, nil
}

func (b *bucket) key(name string) string { return path.Join(b.prefix, name) }

func (b *bucket) failed(name string, err error) error {
	if err == nil {
		return nil
	}
	switch minio.ToErrorResponse(err).Code {
	case "NoSuchKey":
		err = fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	case "PreconditionFailed", "ConditionalRequestConflict":
		err = fmt.Errorf("%w (%w)", fs.ErrExist, err)
	}
	return fmt.Errorf("s3://%s/%s: %w", b.name, b.key(name), err)
}

// Put implements Store.
func (b *bucket) Put(ctx context.Context, name string, data []byte) error {
	return b.put(ctx, name, data, minio.PutObjectOptions{})
}

// PutNew implements Store, for a service that knows If-None-Match (Amazon's, MinIO, Ceph …). With others the last of several wins.
func (b *bucket) PutNew(ctx context.Context, name string, data []byte) error {
	var opt minio.PutObjectOptions
	opt.SetMatchETagExcept("*")
	err := b.put(ctx, name, data, opt)
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && answer.Code == minio.NotImplemented {
		return b.Put(ctx, name, data)
	}
	return err
}

func (b *bucket) put(ctx context.Context, name string, data []byte, opt minio.PutObjectOptions) error {
	opt.ContentType, opt.DisableMultipart = "application/octet-stream", true
	_, err := b.c.PutObject(ctx, b.name, b.key(name), bytes.NewReader(data), int64(len(data)), opt)
	return b.failed(name, err)
}

// Get implements Store.
func (b *bucket) Get(ctx context.Context, name string, max int64) ([]byte, error) {
	o, err := b.c.GetObject(ctx, b.name, b.key(name), minio.GetObjectOptions{})
	if err != nil {
		return nil, b.failed(name, err)
	}
	defer o.Close()
	data, err := io.ReadAll(io.LimitReader(o, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("more than %d bytes", max)
	}
	return data, b.failed(name, err)
}

// Size implements Store.
func (b *bucket) Size(ctx context.Context, name string) (int64, error) {
	info, err := b.c.StatObject(ctx, b.name, b.key(name), minio.StatObjectOptions{})
	return info.Size, b.failed(name, err)
}

// List implements Store.
func (b *bucket) List(ctx context.Context, prefix string) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the listing if it is left early
	defer cancel()
	var out []string
	for o := range b.c.ListObjects(ctx, b.name, minio.ListObjectsOptions{Prefix: b.key(prefix) + "/"}) {
		if o.Err != nil {
			return nil, b.failed(prefix, o.Err)
		}
		out = append(out, prefix+path.Base(o.Key))
	}
	slices.Sort(out)
	return out, nil
}
