package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kiloraft/kiloraft/internal/certs"
)

// Spec says what node process to start.
type Spec struct {
	Binary string
	Name   string
	Dir    string // of the cluster: data in Dir/Name, log in Dir/Name.log
	Addr   string
	HTTP   string
	Join   []string
	Args   []string    // more arguments of serve
	Env    []string    // more environment
	Certs  certs.Names // none: plain text
}

// Process is a node process that was started. Its methods may be called from any goroutine.
type Process struct {
	Spec
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // how, valid after done

	mu       sync.Mutex
	expected bool // guarded by mu: someone here ended it
}

// LogFile is where the process writes.
func (s *Spec) LogFile() string { return filepath.Join(s.Dir, s.Name+".log") }

// DataDir is where the node keeps its data.
func (s *Spec) DataDir() string { return filepath.Join(s.Dir, s.Name) }

// Start starts the process. It does not wait until the node serves: see WaitLive.
func Start(s Spec) (*Process, error) {
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"serve", "--data-dir", s.DataDir(), "--listen", s.Addr, "--http", s.HTTP, "--name", s.Name}
	if len(s.Join) > 0 {
		args = append(args, "--join", strings.Join(s.Join, ","))
	}
	if s.Certs.CA != "" {
		args = append(args, "--tls-ca", s.Certs.CA, "--tls-cert", s.Certs.Cert, "--tls-key", s.Certs.Key)
	}
	cmd := exec.Command(s.Binary, append(args, s.Args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.SysProcAttr = childAttributes()
	p := &Process{Spec: s, cmd: cmd, done: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting node %s: %w", s.Name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Unexpected tells how the process ended if nobody here ended it, else nil.
func (p *Process) Unexpected() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.expected {
		return nil
	}
	return fmt.Errorf("node %s (pid %d) ended by itself: %v; the end of %s:\n%s", p.Name, p.PID(), p.err, p.LogFile(), p.LogTail(10))
}

func (p *Process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *Process) expect() {
	p.mu.Lock()
	p.expected = true
	p.mu.Unlock()
}

// Kill is kill -9, and waits for the end.
func (p *Process) Kill() {
	p.expect()
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Signal sends a signal, e.g. SIGSTOP.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks the process to end and kills it when ctx ends first. The error is nil only if the process exited 0.
func (p *Process) Stop(ctx context.Context) error {
	p.expect()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = p.Signal(syscall.SIGCONT) // a process that stands still would not hear of it
	select {
	case <-p.done:
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("node %s did not stop in time and was killed", p.Name)
	}
	if p.err != nil {
		return fmt.Errorf("node %s: %w", p.Name, p.err)
	}
	return nil
}

// LogTail gives the last lines of the log.
func (p *Process) LogTail(lines int) string {
	b, err := tail(p.LogFile(), 16<<10)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func tail(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(f)
}

// WaitLive waits until the node answers on HTTP.
func (p *Process) WaitLive(ctx context.Context) error {
	return p.waitHTTP(ctx, "/livez")
}

func (p *Process) waitHTTP(ctx context.Context, path string) error {
	client, err := p.httpClient()
	if err != nil {
		return err
	}
	for {
		resp, err := client.Get(p.URL() + path)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				client.CloseIdleConnections()
				return nil
			}
			err = fmt.Errorf("%s: %s", path, resp.Status)
		}
		select {
		case <-p.done:
			if e := p.Unexpected(); e != nil {
				return e
			}
			return fmt.Errorf("node %s was stopped", p.Name)
		case <-ctx.Done():
			return fmt.Errorf("node %s does not come up: %w; the end of its log:\n%s", p.Name, err, p.LogTail(10))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
