// The exception vectors of EL2, and the way into a guest and back.
//
// While a guest runs, SP_EL2 points to its `Frame`: 31 general registers, then the host's stack pointer. The host's own
// registers lie on the host's stack, so a guest's CPU never holds an address of the host. ELR_EL2 and SPSR_EL2 stay in the
// CPU: only those who change them touch them.

    .macro leave_guest kind
    .balign 128
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    ldr     x1, [sp, #248]
    str     x30, [sp, #240]
    mov     x0, #\kind
    mov     sp, x1
    ldp     x19, x20, [sp]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    add     sp, sp, #96
    ret
    .endm

// Our own exception: never expected, so nothing is saved. The stack may be what is wrong: use the CPU's second one.
    .macro own_fault kind
    .balign 128
    mrs     x2, tpidr_el2
    ldr     x2, [x2, #{start_emergency}]
    mov     x1, sp
    mov     sp, x2
    mov     x0, #\kind
    b       {trap}
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .global bulkhead_vectors
bulkhead_vectors:
    own_fault 0                             // EL2 with SP_EL0: synchronous, IRQ, FIQ, SError
    own_fault 1
    own_fault 2
    own_fault 3
    own_fault 0                             // EL2 with SP_EL2
    own_fault 1
    own_fault 2
    own_fault 3
    leave_guest 0                           // a guest, AArch64 at EL1
    leave_guest 1
    leave_guest 2
    leave_guest 3
    leave_guest 0                           // AArch32 at EL1 is switched off (HCR_EL2.RW)
    leave_guest 1
    leave_guest 2
    leave_guest 3

// x0 = the guest's `Frame`. Returns the kind of exception that came: 0 synchronous, 1 IRQ, 2 FIQ, 3 SError.
    .section .text.enter, "ax"
    .global bulkhead_enter
bulkhead_enter:
    stp     x19, x20, [sp, #-96]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    mov     x1, sp
    str     x1, [x0, #248]
    mov     sp, x0
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp]
    eret
    // No instruction behind the return is executed, not even on trial.
    dsb     nsh
    isb
