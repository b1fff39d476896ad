package placement

import (
	"fmt"

	"github.com/kiloraft/kiloraft/internal/mp"
)

// PrefixProblem is the prefix of the problems that the driver has found and that are not over.
const PrefixProblem = "problem/"

// Problem is something that is wrong with the cluster. It is recorded so that since when outlives the driver that has found it.
type Problem struct {
	Name    string // what it is about, as node/3/down: the same problem has the same name
	Text    string
	SinceMS int64 // unix
}

// Count says how many there are: "1 shard", "2 shards". many may be empty if it is one with an s.
func Count(n int, one, many string) string {
	switch {
	case n == 1:
		return "1 " + one
	case many == "":
		many = one + "s"
	}
	return fmt.Sprintf("%d %s", n, many)
}

// ProblemKey holds a Problem.
func ProblemKey(name string) []byte { return []byte(PrefixProblem + name) }

// Append encodes the record.
func (p *Problem) Append(b []byte) []byte {
	b = mp.AppendString(mp.AppendArray(b, 3), p.Name)
	return mp.AppendInt(mp.AppendString(b, p.Text[:min(len(p.Text), opTextMax)]), p.SinceMS)
}

// DecodeProblem decodes a Problem.
func DecodeProblem(b []byte) (Problem, error) {
	r := mp.NewReader(b)
	more := r.ArrayMin(3)
	p := Problem{Name: ReadText(&r)}
	text := r.Bin()
	p.Text = string(text[:min(len(text), opTextMax)])
	p.SinceMS = r.Int()
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return Problem{}, fmt.Errorf("placement: problem: %w", err)
	}
	return p, nil
}

// Problems keeps account of what is wrong and since when. It reads no clock.
type Problems struct {
	Recorded map[string]Problem // as the meta shard has them
	seen     map[string]int64   // what is not recorded yet: since when
}

// NewProblems starts from what is recorded.
func NewProblems(recorded []Problem) *Problems {
	p := &Problems{Recorded: map[string]Problem{}, seen: map[string]int64{}}
	for _, x := range recorded {
		p.Recorded[x.Name] = x
	}
	return p
}

// None tells whether nothing is wrong, as of the last Update, nor recorded to be.
func (p *Problems) None() bool { return p != nil && len(p.Recorded)+len(p.seen) == 0 }

// ProblemsMax bounds the problems that are recorded.
const ProblemsMax = 200

// Update takes what is wrong at the time now, in ms. It returns what must be recorded, which is what has been wrong for patience, and which
// records are over. An election or a restart is over by then.
func (p *Problems) Update(now, patience int64, list []Problem) (record []Problem, over []string) {
	wrong := make(map[string]bool, len(list))
	seen := make(map[string]int64, len(list))
	for _, x := range list {
		wrong[x.Name] = true
		if _, ok := p.Recorded[x.Name]; ok {
			continue
		}
		since, ok := p.seen[x.Name]
		if !ok {
			since = now
		}
		seen[x.Name] = since
		if now-since >= patience && len(p.Recorded)+len(record) < ProblemsMax {
			x.SinceMS = since
			record = append(record, x)
		}
	}
	p.seen = seen
	for name := range p.Recorded {
		if !wrong[name] {
			over = append(over, name)
		}
	}
	return record, over
}
