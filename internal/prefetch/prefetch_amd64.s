#include "textflag.h"

// func bytes(p unsafe.Pointer, size uintptr)
TEXT ·bytes(SB), NOSPLIT, $0-16
	MOVQ p+0(FP), AX
	MOVQ size+8(FP), CX
	MOVQ AX, DX
	ANDQ $63, DX
	LEAQ 63(CX)(DX*1), CX
	SHRQ $6, CX // how many lines

line:
	PREFETCHT0 (AX)
	ADDQ $64, AX
	SUBQ $1, CX
	JGT  line
	RET
