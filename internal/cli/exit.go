package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/internal/client"
)

// The exit codes that scripts rely on.
const (
	exitDone        = 0
	exitFailed      = 1 // an operation that failed, an expectation that did not hold
	exitUsage       = 2
	exitNotFound    = 3
	exitUnavailable = 4 // also: not initialized, too few nodes
	exitUnknown     = 5 // outcome unknown or still running
)

// usageError marks a mistake in what was typed or configured.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// silentError ends with a code without a message: the output already said it.
type silentError struct{ code int }

func (e silentError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	var (
		silent silentError
		usage  usageError
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &silent):
		return silent.code
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, client.ErrUnknown):
		return exitUnknown
	case errors.Is(err, client.ErrNotFound):
		return exitNotFound
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return exitUnavailable
	case errors.Is(err, context.Canceled):
		return exitUnknown
	}
	return exitFailed
}
