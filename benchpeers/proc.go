package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a node that was started here. One goroutine uses it at a time.
type process struct {
	cmd *exec.Cmd
	log string // file with what it wrote to stderr
	in  io.Writer
	out *bufio.Reader
}

// startProcess runs a program. Its control channel is stdin and stdout (see call); stderr goes to dir/name.log.
func startProcess(dir, name, program string, env []string, args ...string) (*process, error) {
	p := &process{log: filepath.Join(dir, name+".log"), cmd: exec.Command(program, args...)}
	f, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd.Stderr = f
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	return p, p.cmd.Start()
}

// call sends one request as a line of JSON and reads the answer, also a line. The process is killed when ctx ends first.
func (p *process) call(ctx context.Context, req request) (response, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	defer stop()
	if err := json.NewEncoder(p.in).Encode(req); err != nil {
		return response{}, p.failed(req.Do, err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return response{}, p.failed(req.Do, errors.Join(err, ctx.Err()))
	}
	var res response
	if err := json.Unmarshal(line, &res); err != nil {
		return response{}, p.failed(req.Do, err)
	}
	if res.Error != "" {
		return response{}, fmt.Errorf("%s: %s", req.Do, res.Error)
	}
	return res, nil
}

func (p *process) failed(what string, err error) error {
	b, _ := os.ReadFile(p.log)
	return fmt.Errorf("%s: node process: %w; its log ends: %s", what, err, b[max(0, len(b)-400):])
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// ticksPerSecond of /proc/PID/stat: 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// cpu is the user and system time that processes have used.
func cpu(ps []*process) (time.Duration, error) {
	var ticks int64
	for _, p := range ps {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			return 0, err
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat has %d fields", p.cmd.Process.Pid, len(f))
		}
		for _, s := range f[11:13] {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

// resident is the memory that processes hold, in bytes.
func resident(ps []*process) (int64, error) {
	var sum int64
	for _, p := range ps {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
		if err != nil {
			return 0, err
		}
		f := strings.Fields(string(b))
		if len(f) < 2 {
			return 0, fmt.Errorf("/proc/%d/statm: %q", p.cmd.Process.Pid, b)
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n * int64(os.Getpagesize())
	}
	return sum, nil
}

// freeAddresses finds ports that nobody uses. Another process may take one before the node does; the node then fails to start.
func freeAddresses(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all at the end: no port twice
		out = append(out, l.Addr().String())
	}
	return out, nil
}
