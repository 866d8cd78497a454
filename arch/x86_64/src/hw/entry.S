// The ways in: a boot loader's, by multiboot2 (Multiboot2 Specification 3.1) or by PVH (Xen, docs/misc/pvh.pandoc), and that of
// the other CPUs, which begin in real mode on a page below 1 MiB (SDM Vol. 3A, 9.4).

    .set CODE_64, {code_64}
    .set CODE_32, {code_32}
    .set DATA, {data}

    .section .multiboot2, "a"
    .balign 8
bulkhead_header:
    .long   0xe85250d6, 0, bulkhead_header_end - bulkhead_header
    .long   -(0xe85250d6 + (bulkhead_header_end - bulkhead_header))
    .short  6, 0                            // modules begin at pages
    .long   8
    .short  0, 0
    .long   8
bulkhead_header_end:

    .section .note.pvh, "a", @note
    .balign 4
    .long   4, 8, 18                        // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz  "Xen"
    .quad   bulkhead_pvh

// The tables of the way to long mode: the lower 4 GiB one to one, by pages of 2 MiB.
    .section .bss.entry, "aw", @nobits
    .balign 4096
bulkhead_first_tables:
    .skip   6 * 4096

    .section .rodata.entry, "a"
bulkhead_gdt_pointer:
    .short  {gdt_limit}
    .long   {gdt}
bulkhead_no_long_mode:
    .asciz  "bulkhead: nothing is booted: the CPU has no 64-bit mode, or cannot forbid execution (NX)\r\n"

// 32-bit protected mode, flat, translation off. EAX = the loader's magic number, EBX = its information.
    .section .text.entry, "ax"
    .code32
    .global bulkhead_multiboot2
bulkhead_multiboot2:
    movl    %eax, %edi
    jmp     .Lenter

// The same state, without a magic number.
    .global bulkhead_pvh
bulkhead_pvh:
    xorl    %edi, %edi
.Lenter:
    cli
    cld
    movl    %ebx, %esi
    movl    $({boot_stack} + {stack_end}), %esp
    movl    $0x80000000, %eax
    cpuid
    cmpl    $0x80000001, %eax
    jb      .Lrefuse
    movl    $0x80000001, %eax
    cpuid
    andl    $(1 << 29 | 1 << 20), %edx
    cmpl    $(1 << 29 | 1 << 20), %edx
    jne     .Lrefuse

    movl    $(bulkhead_first_tables + 4096 + 3), bulkhead_first_tables
    movl    $(bulkhead_first_tables + 2 * 4096 + 3), %eax
    xorl    %ecx, %ecx
.Ldirectory:
    movl    %eax, bulkhead_first_tables + 4096(, %ecx, 8)
    addl    $4096, %eax
    incl    %ecx
    cmpl    $4, %ecx
    jb      .Ldirectory
    movl    $0x83, %eax                     // present, writable, 2 MiB
    xorl    %ecx, %ecx
.Lpage:
    movl    %eax, bulkhead_first_tables + 2 * 4096(, %ecx, 8)
    addl    $0x200000, %eax
    incl    %ecx
    cmpl    $2048, %ecx
    jb      .Lpage

    movl    $bulkhead_first_tables, %eax
    movl    $.Lboot, %ebp
    jmp     .Ltranslate

// EAX = the root of the tables, EBP = where to go on in 64-bit mode. Keeps ESI, EDI and ESP.
.Ltranslate:
    movl    %eax, %cr3
    movl    ${cr4}, %eax
    movl    %eax, %cr4
    movl    $0xc0000080, %ecx               // EFER: LME, NXE
    rdmsr
    orl     $(1 << 8 | 1 << 11), %eax
    wrmsr
    lgdt    bulkhead_gdt_pointer
    movl    ${cr0}, %eax
    movl    %eax, %cr0
    ljmp    $CODE_64, $.Llong

.Lrefuse:
    movl    $bulkhead_no_long_mode, %esi
.Lnext:
    lodsb
    testb   %al, %al
    jz      .Lstop
    movb    %al, %ah
    movw    $0x3fd, %dx
    movl    $100000, %ecx
.Lroom:
    inb     %dx, %al
    testb   $0x20, %al
    loopz   .Lroom
    movw    $0x3f8, %dx
    movb    %ah, %al
    outb    %al, %dx
    jmp     .Lnext
.Lstop:
    hlt
    jmp     .Lstop

// Another CPU, from the trampoline, in 32-bit mode with translation off.
bulkhead_other:
    movw    $DATA, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movl    {other_root}, %eax
    movl    $.Lother, %ebp
    jmp     .Ltranslate

    .code64
.Llong:
    movl    $DATA, %eax
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %fs
    movl    %eax, %gs
    movl    %ebp, %eax
    xorl    %ebp, %ebp
    jmpq    *%rax
.Lboot:
    movl    $({boot_stack} + {stack_end}), %esp
    movl    %edi, %edi
    movl    %esi, %esi
    call    {boot}
    ud2
.Lother:
    movq    {other_stack}, %rsp
    call    {other}
    ud2

// Copied to a page below 1 MiB, where another CPU begins in real mode with CS = that page.
    .section .rodata.entry, "a"
    .code16
    .global bulkhead_trampoline
    .global bulkhead_trampoline_end
    .balign 16
bulkhead_trampoline:
    cli
    cld
    lgdtl   %cs:(.Lpointer - bulkhead_trampoline)
    movl    %cr0, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   $CODE_32, $bulkhead_other
    .balign 8
.Lpointer:
    .short  {gdt_limit}
    .long   {gdt}
bulkhead_trampoline_end:
    .code64
    .text
