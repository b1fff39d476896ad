package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/certs"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/config"
	"github.com/kiloraft/kiloraft/transport"
)

// dialRemote connects over the network, as whom the configuration says.
func (a *app) dialRemote(ctx context.Context, cfg *config.Config) (client.Cluster, error) {
	t := transport.ClientConfig{User: cfg.User}
	if cfg.TLS.CA != "" {
		files, err := certs.Open(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key, certs.Options{})
		if err != nil {
			return nil, usageError{err}
		}
		t.TLS = files
	}
	var err error
	if t.Password, err = a.password(cfg); err != nil {
		return nil, err
	}
	return DialAs(ctx, cfg.Server, t)
}

// password returns the password of the user that the configuration names: from the file, from the environment, or asked for. A user with
// a certificate needs none. It is never an argument: those can be seen by everybody on the machine.
func (a *app) password(cfg *config.Config) ([]byte, error) {
	if cfg.User == "" {
		return nil, nil
	}
	if cfg.PasswordFile != "" {
		return readPassword(cfg.PasswordFile, a.env.Stdin)
	}
	for _, kv := range a.env.Environ {
		if p, ok := strings.CutPrefix(kv, "KILORAFT_PASSWORD="); ok && p != "" {
			return []byte(p), nil
		}
	}
	switch {
	case isTerminal(a.env.Stdin):
		return a.ask("Password of " + cfg.User + ": ")
	case cfg.TLS.Cert != "":
		return nil, nil
	}
	return nil, usagef("no password for user %s: give --password-file, or $KILORAFT_PASSWORD", cfg.User)
}

// readPassword reads a password from a file, or with - from stdin. One line end at its end does not belong to it.
func readPassword(name string, stdin io.Reader) ([]byte, error) {
	r := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, usagef("password: %w", err)
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, auth.PasswordBytesMax+3))
	if err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) > auth.PasswordBytesMax || bytes.ContainsRune(b, '\n') {
		return nil, usagef("password: want one line of at most %d bytes in %s", auth.PasswordBytesMax, name)
	}
	return b, nil
}

// ask asks for a secret on the terminal, without showing it.
func (a *app) ask(prompt string) ([]byte, error) {
	f, ok := a.env.Stdin.(*os.File)
	if !ok {
		return nil, errors.New("there is no terminal to ask for a password on")
	}
	fmt.Fprint(a.env.Stderr, prompt)
	defer fmt.Fprintln(a.env.Stderr)
	return term.ReadPassword(int(f.Fd()))
}

// newPassword returns a password to be set: from a file, else asked for twice.
func (a *app) newPassword(user, file string) ([]byte, error) {
	var p []byte
	var err error
	switch {
	case file != "":
		p, err = readPassword(file, bufio.NewReader(a.env.Stdin))
	case !isTerminal(a.env.Stdin):
		return nil, usagef("no new password for %s: give --new-password-file (- is stdin), or --no-password for certificates only", user)
	default:
		p, err = a.ask("New password of " + user + ": ")
		if err == nil {
			var again []byte
			if again, err = a.ask("Once more: "); err == nil && !bytes.Equal(p, again) {
				return nil, usagef("the two are not the same")
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if err := auth.CheckPassword(p); err != nil {
		return nil, usageError{err}
	}
	return p, nil
}
