// The way into a guest under VMX and back.
//
// enter_vmx(registers: *mut Registers, host_stack: *mut u64, launched: bool) -> bool
//
// Returns whether the guest was entered. The guest's general registers are in `registers` before and after, but for RSP,
// which the VMCS holds. An exit continues at bulkhead_vmx_exit with nothing of ours but RSP.

    .global bulkhead_enter_vmx
    .global bulkhead_vmx_exit
bulkhead_enter_vmx:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    push rdi
    // HOST_RSP is written only when it is another than last time.
    cmp rsp, [rsi]
    je 1f
    mov [rsi], rsp
    mov eax, 0x6c14
    vmwrite rax, rsp
1:  test edx, edx
    mov rax, rdi
    mov rcx, [rax + 8]
    mov rdx, [rax + 16]
    mov rbx, [rax + 24]
    mov rbp, [rax + 40]
    mov rsi, [rax + 48]
    mov rdi, [rax + 56]
    mov r8, [rax + 64]
    mov r9, [rax + 72]
    mov r10, [rax + 80]
    mov r11, [rax + 88]
    mov r12, [rax + 96]
    mov r13, [rax + 104]
    mov r14, [rax + 112]
    mov r15, [rax + 120]
    mov rax, [rax]
    jnz 2f
    vmlaunch
    jmp 3f
2:  vmresume
    // Not entered: no guest's instruction ran, and `registers` still hold.
3:  pop rdi
    xor eax, eax
    jmp 4f

bulkhead_vmx_exit:
    xchg rax, [rsp]
    mov [rax + 8], rcx
    mov [rax + 16], rdx
    mov [rax + 24], rbx
    mov [rax + 40], rbp
    mov [rax + 48], rsi
    mov [rax + 56], rdi
    mov [rax + 64], r8
    mov [rax + 72], r9
    mov [rax + 80], r10
    mov [rax + 88], r11
    mov [rax + 96], r12
    mov [rax + 104], r13
    mov [rax + 112], r14
    mov [rax + 120], r15
    pop qword ptr [rax]
    mov eax, 1
4:  pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
