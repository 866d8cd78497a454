// What the interrupt descriptor table names: a stub of 16 bytes for each vector.
//
// Exceptions (0 to 31) are our own faults and end in `trap`. Interrupts come in the windows that `metal` opens, nowhere else:
// they tell the vector in EAX and return with interrupts masked, so that one window takes one interrupt.

    .section .text.vectors, "ax"
    .balign 16
    .global bulkhead_stubs
bulkhead_stubs:
    .set    vector, 0
    .rept   32
    .balign 16
    .if (vector != 8) && (vector != 10) && (vector != 11) && (vector != 12) && (vector != 13) && (vector != 14) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
    pushq   $0                              // in place of the error code that others have (SDM Vol. 3A, table 6-1)
    .endif
    pushq   $vector
    jmp     bulkhead_fault
    .set    vector, vector + 1
    .endr
    .rept   224
    .balign 16
    movl    $vector, %eax
    andl    $~0x200, 16(%rsp)               // IF in the flags that IRETQ takes
    iretq
    .set    vector, vector + 1
    .endr

bulkhead_fault:
    cld
    movq    %rsp, %rdi
    xorl    %ebp, %ebp
    andq    $-16, %rsp
    call    {trap}
    ud2
