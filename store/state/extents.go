package state

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
)

// Arithmetic of extents (rule State4). A list is normal if it is sorted by tablet and start, and nothing in it overlaps.

// before tells whether the bound a, the end of an extent, is at or before the start b.
func endsBefore(end, start []byte) bool { return len(end) != 0 && bytes.Compare(end, start) <= 0 }

// compareEnds orders ends of extents; an empty one is the greatest.
func compareEnds(a, b []byte) int {
	switch {
	case len(a) == 0 && len(b) == 0:
		return 0
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return bytes.Compare(a, b)
}

func compareExtents(a, b Extent) int {
	if c := cmp.Compare(a.Tablet, b.Tablet); c != 0 {
		return c
	}
	return bytes.Compare(a.Start, b.Start)
}

func equalExtents(a, b []Extent) bool {
	return slices.EqualFunc(a, b, func(x, y Extent) bool {
		return x.Tablet == y.Tablet && bytes.Equal(x.Start, y.Start) && bytes.Equal(x.End, y.End)
	})
}

// checkExtents checks a record's list: sorted by start, nothing empty, nothing overlapping.
func checkExtents(list []Extent) error {
	for i, e := range list {
		if len(e.End) != 0 && bytes.Compare(e.Start, e.End) >= 0 {
			return fmt.Errorf("%w: %s is empty", ErrExtents, extentString(e))
		}
		if i > 0 && !endsBefore(list[i-1].End, e.Start) {
			return fmt.Errorf("%w: %s before %s", ErrExtents, extentString(list[i-1]), extentString(e))
		}
	}
	return nil
}

// normalize sorts the list and reports the first overlap.
func normalize(list []Extent) error {
	slices.SortFunc(list, compareExtents)
	for i := 1; i < len(list); i++ {
		if list[i].Tablet == list[i-1].Tablet && !endsBefore(list[i-1].End, list[i].Start) {
			return fmt.Errorf("%w: %s and %s overlap", ErrExtents, extentString(list[i-1]), extentString(list[i]))
		}
	}
	return nil
}

// subtract returns what is in a and not in b. Both are normal, and so is the result.
func subtract(a, b []Extent) []Extent {
	var out []Extent
	j := 0
	for _, e := range a {
		for j < len(b) && (b[j].Tablet < e.Tablet || b[j].Tablet == e.Tablet && endsBefore(b[j].End, e.Start)) {
			j++
		}
		rest := true
		for i := j; i < len(b) && b[i].Tablet == e.Tablet && !endsBefore(e.End, b[i].Start); i++ {
			if bytes.Compare(e.Start, b[i].Start) < 0 {
				out = append(out, Extent{Start: e.Start, End: b[i].Start, Tablet: e.Tablet})
			}
			if len(b[i].End) == 0 || compareEnds(e.End, b[i].End) <= 0 {
				rest = false
				break
			}
			e.Start = b[i].End
		}
		if rest {
			out = append(out, e)
		}
	}
	return out
}

// find returns the extent of a record's list that holds key.
func find(list []Extent, key []byte) (Extent, bool) {
	if len(list) == 1 {
		return list[0], list[0].Contains(key)
	}
	i, ok := slices.BinarySearchFunc(list, key, func(e Extent, key []byte) int { return bytes.Compare(e.Start, key) })
	if !ok {
		i--
	}
	if i < 0 {
		return Extent{}, false
	}
	return list[i], list[i].Contains(key)
}

// holds tells whether the normal list has key of tablet t.
func holds(list []Extent, t TabletID, key []byte) bool {
	i, ok := slices.BinarySearchFunc(list, Extent{Tablet: t, Start: key}, compareExtents)
	if !ok {
		i--
	}
	return i >= 0 && list[i].Tablet == t && list[i].Contains(key)
}

func extentString(e Extent) string {
	if len(e.End) == 0 {
		return fmt.Sprintf("tablet %d [%q, +inf)", e.Tablet, e.Start)
	}
	return fmt.Sprintf("tablet %d [%q, %q)", e.Tablet, e.Start, e.End)
}
