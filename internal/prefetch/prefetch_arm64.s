#include "textflag.h"

// func bytes(p unsafe.Pointer, size uintptr)
TEXT ·bytes(SB), NOSPLIT, $0-16
	MOVD p+0(FP), R0
	MOVD size+8(FP), R1
	AND  $63, R0, R2
	ADD  R2, R1
	ADD  $63, R1
	LSR  $6, R1 // how many lines

line:
	PRFM (R0), PLDL1KEEP
	ADD  $64, R0
	SUBS $1, R1
	BGT  line
	RET
