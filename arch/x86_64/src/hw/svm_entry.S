// The way into a guest and back on AMD: RDI = its general registers (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15, 8 bytes
// each), RSI = the physical address of its control block, RDX = that of the block with the host's own state.
//
// The control block holds the guest's RAX and RSP. VMRUN keeps the host's segments, tables, control registers and RSP; FS, GS,
// TR, LDTR and the MSRs of SYSCALL and SYSENTER are exchanged here. The global interrupt flag is clear in between: nothing
// interrupts us while the host's state is not whole. IF is set for VMRUN, so that physical interrupts end the guest's turn.

    .section .text.svm_enter, "ax"
    .global bulkhead_svm_enter
bulkhead_svm_enter:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    push    rdi
    push    rdx
    mov     rax, rsi
    mov     rcx, [rdi + 8]
    mov     rdx, [rdi + 16]
    mov     rbx, [rdi + 24]
    mov     rbp, [rdi + 40]
    mov     rsi, [rdi + 48]
    mov     r8, [rdi + 64]
    mov     r9, [rdi + 72]
    mov     r10, [rdi + 80]
    mov     r11, [rdi + 88]
    mov     r12, [rdi + 96]
    mov     r13, [rdi + 104]
    mov     r14, [rdi + 112]
    mov     r15, [rdi + 120]
    mov     rdi, [rdi + 56]
    clgi
    sti
    vmload  rax
    vmrun   rax
    vmsave  rax
    pop     rax
    vmload  rax
    cli
    stgi
    pop     rax
    mov     [rax + 8], rcx
    mov     [rax + 16], rdx
    mov     [rax + 24], rbx
    mov     [rax + 40], rbp
    mov     [rax + 48], rsi
    mov     [rax + 56], rdi
    mov     [rax + 64], r8
    mov     [rax + 72], r9
    mov     [rax + 80], r10
    mov     [rax + 88], r11
    mov     [rax + 96], r12
    mov     [rax + 104], r13
    mov     [rax + 112], r14
    mov     [rax + 120], r15
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    // Nothing of the guest's is left to be used on trial.
    xor     ecx, ecx
    xor     edx, edx
    xor     esi, esi
    xor     edi, edi
    xor     r8d, r8d
    xor     r9d, r9d
    xor     r10d, r10d
    xor     r11d, r11d
    ret
