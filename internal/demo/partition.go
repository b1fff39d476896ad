package demo

import (
	"fmt"
	"slices"
	"strings"
)

// partition cuts the links between sides. text names them: "n1 n2|n3"; nodes that it does not name are a side together.
func (p *prompt) partition(text string) error {
	var sides [][]int
	var rest []int
	for i := range p.c.Nodes {
		rest = append(rest, i)
	}
	for part := range strings.SplitSeq(text, "|") {
		var side []int
		for _, name := range strings.FieldsFunc(part, func(r rune) bool { return r == ' ' || r == ',' }) {
			i, err := p.node(name)
			if err != nil {
				return err
			}
			k := slices.Index(rest, i)
			if k < 0 {
				return fmt.Errorf("%s is named twice", p.c.Nodes[i].Name)
			}
			rest, side = slices.Delete(rest, k, k+1), append(side, i)
		}
		if len(side) > 0 {
			sides = append(sides, side)
		}
	}
	if len(rest) > 0 {
		sides = append(sides, rest)
	}
	if len(sides) < 2 {
		return fmt.Errorf("all nodes are on one side: name some of them, or separate the sides by |")
	}
	p.sides = sides
	p.c.Links.Partition(sides)
	var names []string
	for _, s := range sides {
		names = append(names, p.names(s))
	}
	fmt.Fprintf(p.out, "  no connection between %s; you reach all of them: try status\n", strings.Join(names, " and "))
	return nil
}

// heal ends the partition.
func (p *prompt) heal() {
	if p.sides == nil {
		fmt.Fprintln(p.out, "  nothing is cut")
		return
	}
	p.sides = nil
	p.c.Links.Heal()
	fmt.Fprintln(p.out, "  all nodes reach each other again")
}

// names tells the nodes of a side.
func (p *prompt) names(side []int) string {
	var out []string
	for _, i := range side {
		out = append(out, p.c.Nodes[i].Name)
	}
	return strings.Join(out, " ")
}
