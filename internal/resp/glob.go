package resp

// globMatch matches as Redis does: * ? [a-c] [^a] and \ before a character that stands for itself.
func globMatch(pattern, s []byte) bool {
	// Where to go on if what follows the last * does not match: one character later.
	star, from := -1, 0
	p, i := 0, 0
	for i < len(s) || p < len(pattern) {
		if p < len(pattern) && pattern[p] == '*' {
			star, from = p, i
			p++
			continue
		}
		if i < len(s) && p < len(pattern) {
			if n, ok := globOne(pattern[p:], s[i]); ok {
				p += n
				i++
				continue
			}
		}
		if star < 0 || from >= len(s) {
			return false
		}
		from++
		p, i = star+1, from
	}
	return true
}

// globOne matches one character with the start of the pattern, and returns how much of it that was.
func globOne(p []byte, c byte) (int, bool) {
	switch p[0] {
	case '?':
		return 1, true
	case '\\':
		if len(p) > 1 {
			return 2, p[1] == c
		}
	case '[':
		return globClass(p, c)
	}
	return 1, p[0] == c
}

func globClass(p []byte, c byte) (int, bool) {
	i, not, match := 1, false, false
	if i < len(p) && p[i] == '^' {
		not = true
		i++
	}
	for i < len(p) && p[i] != ']' {
		switch {
		case p[i] == '\\' && i+1 < len(p):
			i++
			match = match || p[i] == c
		case i+2 < len(p) && p[i+1] == '-':
			lo, hi := min(p[i], p[i+2]), max(p[i], p[i+2])
			match = match || lo <= c && c <= hi
			i += 2
		default:
			match = match || p[i] == c
		}
		i++
	}
	return min(i+1, len(p)), match != not
}

// globPrefix returns what every match begins with.
func globPrefix(pattern []byte) []byte {
	var prefix []byte
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '*', '?', '[':
			return prefix
		case '\\':
			if i+1 < len(pattern) {
				i++
			}
		}
		prefix = append(prefix, pattern[i])
	}
	return prefix
}
