// Package bitset has sets of ids that are close together, of which there are too many for a map with an entry each.
//
// It imports nothing.
package bitset

// Set has a bit for each id, 64 to an entry. Like a map it is made before an id is added, and is not for several goroutines.
type Set[ID ~uint64] map[ID]uint64

// Has tells whether id is in it.
func (s Set[ID]) Has(id ID) bool { return s[id>>6]&(1<<(id&63)) != 0 }

// Add puts id into it.
func (s Set[ID]) Add(id ID) { s[id>>6] |= 1 << (id & 63) }

// Remove takes id out, if it is in it.
func (s Set[ID]) Remove(id ID) {
	if bits := s[id>>6] &^ (1 << (id & 63)); bits != 0 {
		s[id>>6] = bits
	} else {
		delete(s, id>>6)
	}
}
