// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// What parseGo does, instruction by instruction where the compiler needs three: it keeps half of these
// variables in memory. Nothing here is newer than the first x86-64 processors; TZCNT is BSF to those that do not know it,
// which is the same for what is not 0.

#define PAGE SI
#define OUT DI
#define TABLE BX
#define IP R8
#define ANCHOR R9
#define OFFSET R10
#define BACK R11 // PAGE - OFFSET: BACK[x] is what lies OFFSET before PAGE[x]
#define END CX

#define LIMIT 4080 // 16 bytes before the end of the page

#define HASH(reg) \
	IMUL3L $0x9e3779b1, reg, reg; \
	SHRL   $20, reg

// func parse(out, page *byte, table *[1 << hashLog]uint16) (n, anchor uint)
TEXT ·parse(SB), NOSPLIT, $0-40
	MOVQ out+0(FP), OUT
	MOVQ page+8(FP), PAGE
	MOVQ table+16(FP), TABLE
	MOVL $1, IP
	XORL ANCHOR, ANCHOR
	MOVL $1, OFFSET
	LEAQ -1(PAGE), BACK

search:
	MOVQ    (PAGE)(IP*1), AX
	MOVL    AX, DX
	HASH(DX)
	MOVWLZX (TABLE)(DX*2), R12
	MOVW    IP, (TABLE)(DX*2)
	CMPL    AX, (PAGE)(R12*1)
	JEQ     found
	SHRQ    $8, AX
	CMPL    AX, 1(BACK)(IP*1)
	JEQ     again
	MOVQ    IP, AX
	SUBQ    ANCHOR, AX
	SHRQ    $4, AX
	LEAQ    1(IP)(AX*1), IP
	CMPQ    IP, $LIMIT
	JB      search
	JMP     done

again:
	INCQ IP
	JMP  forward

found:
	MOVQ IP, OFFSET
	SUBQ R12, OFFSET
	MOVQ PAGE, BACK
	SUBQ OFFSET, BACK

forward:
	LEAQ 4(IP), END
more:
	CMPQ   END, $LIMIT
	JAE    bytewise
	MOVQ   (PAGE)(END*1), AX
	XORQ   (BACK)(END*1), AX
	JNE    differ
	ADDQ   $8, END
	JMP    more
differ:
	TZCNTQ AX, AX
	SHRQ   $3, AX
	ADDQ   AX, END

backward:
	CMPQ IP, ANCHOR
	JEQ  literals
	CMPQ IP, OFFSET
	JEQ  literals
	MOVB -1(PAGE)(IP*1), AX
	CMPB AX, -1(BACK)(IP*1)
	JNE  literals
	DECQ IP
	JMP  backward

literals:
	MOVQ    IP, AX
	SUBQ    ANCHOR, AX
	CMPQ    AX, $16
	JA      many
	// The same for none as for some, only that these bytes do not count then.
	MOVOU   (PAGE)(ANCHOR*1), X0
	LEAL    -4(AX*4), DX
	MOVB    DX, (OUT)
	MOVOU   X0, 1(OUT)
	LEAQ    1(OUT)(AX*1), DX
	TESTQ   AX, AX
	CMOVQNE DX, OUT

copy:
	MOVQ    END, R12
	SUBQ    IP, R12
	CMPQ    R12, $64
	JA      long
	MOVL    OFFSET, DX
	SHLL    $8, DX
	LEAL    -2(R12*4), AX // 1 to 64 bytes, from anywhere
	ORL     DX, AX
	CMPQ    OFFSET, $2048
	JAE     far
	// 4 to 11 bytes from less than 2048 before; its third byte does not count.
	MOVL    OFFSET, R13
	SHRL    $8, R13
	SHLL    $5, R13
	ORL     R13, DX
	LEAL    -15(R12*4), R13
	ORL     R13, DX
	MOVL    $3, R13
	CMPQ    R12, $12
	CMOVLCS DX, AX
	SBBQ    $0, R13
	MOVL    AX, (OUT)
	ADDQ    R13, OUT

next:
	MOVQ END, IP
	MOVQ END, ANCHOR
	CMPQ END, $LIMIT
	JAE  done
	MOVL -2(PAGE)(END*1), AX
	HASH(AX)
	LEAQ -2(END), DX
	MOVW DX, (TABLE)(AX*2)
	JMP  search

far:
	MOVL AX, (OUT)
	ADDQ $3, OUT
	JMP  next

bytewise: // near the end of the page
	CMPQ END, $4096
	JAE  backward
	MOVB (PAGE)(END*1), AX
	CMPB AX, (BACK)(END*1)
	JNE  backward
	INCQ END
	JMP  bytewise

many: // more than 16 literals; the element's size is a byte more for each byte that the number takes, if it is not below 60
	LEAQ -1(AX), DX
	CMPQ DX, $60
	JAE  more60
	SHLL $2, DX
	MOVB DX, (OUT)
	INCQ OUT
	JMP  move
more60:
	CMPQ DX, $256
	JAE  more256
	MOVB $(60<<2), (OUT)
	MOVB DX, 1(OUT)
	ADDQ $2, OUT
	JMP  move
more256:
	MOVB $(61<<2), (OUT)
	MOVW DX, 1(OUT)
	ADDQ $3, OUT
move: // up to 15 bytes too many, which are in the page, for IP is at most LIMIT
	LEAQ (OUT)(AX*1), R12
	LEAQ (PAGE)(ANCHOR*1), DX
move16:
	MOVOU (DX), X0
	MOVOU X0, (OUT)
	ADDQ  $16, DX
	ADDQ  $16, OUT
	CMPQ  OUT, R12
	JB    move16
	MOVQ  R12, OUT
	JMP   copy

long: // more than 64 bytes: of 64 as long as 4 are left, which is the least that one element takes
	MOVL OFFSET, DX
	SHLL $8, DX
long64:
	CMPQ R12, $68
	JB   long60
	LEAL (64*4-2)(DX*1), AX
	MOVL AX, (OUT)
	ADDQ $3, OUT
	ADDQ $64, IP
	SUBQ $64, R12
	JMP  long64
long60:
	CMPQ R12, $64
	JBE  copy
	LEAL (60*4-2)(DX*1), AX
	MOVL AX, (OUT)
	ADDQ $3, OUT
	ADDQ $60, IP
	JMP  copy

done:
	SUBQ out+0(FP), OUT
	MOVQ OUT, n+24(FP)
	MOVQ ANCHOR, anchor+32(FP)
	RET
