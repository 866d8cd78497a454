// The way into a guest under VMX and back.
//
// enter_vmx(registers: *mut Registers, host_stack: *mut u64, how: u32) -> bool
//
// `how` is 0 to launch the VMCS and 1 to resume it; with 2 besides, the CPU's buffers are cleared first. Returns whether the
// guest was entered. The guest's general registers are in `registers` before and after, but for RSP, which the VMCS holds. An
// exit continues at bulkhead_vmx_exit with nothing of ours but RSP.

    .section .rodata.vmx_entry, "a"
bulkhead_vmx_data_selector:
    .short {data}

    .section .text.vmx_enter, "ax"
    // VERW of a selector in memory also overwrites what the CPU keeps of our data (Intel, Microarchitectural Data Sampling). What is
    // loaded after it is the guest's own. It changes ZF.
5:  verw word ptr [rip + bulkhead_vmx_data_selector]
    and edx, 1
    cmp edx, 1
    jmp 6f

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
1:  cmp edx, 1
    ja 5b
6:  mov rax, [rdi]
    mov rcx, [rdi + 8]
    mov rdx, [rdi + 16]
    mov rbx, [rdi + 24]
    mov rbp, [rdi + 40]
    mov rsi, [rdi + 48]
    mov r8, [rdi + 64]
    mov r9, [rdi + 72]
    mov r10, [rdi + 80]
    mov r11, [rdi + 88]
    mov r12, [rdi + 96]
    mov r13, [rdi + 104]
    mov r14, [rdi + 112]
    mov r15, [rdi + 120]
    mov rdi, [rdi + 56]
    je 2f
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
    // Nothing of the guest's is left to be used on trial: the others are about to hold something of ours.
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    ret
